from tieline.sdk import serve

from .github import GitHub

serve(GitHub())

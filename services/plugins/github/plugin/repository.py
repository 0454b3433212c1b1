"""The repository that a payload is about, and the ids of what lives in it."""

from __future__ import annotations

from tieline.sdk import Document, Entity


class Repository:
    """Keys are made of the numeric id, which survives a renaming; what people and other providers see is the name."""

    def __init__(self, body: Document) -> None:
        self.name = body.need_text("repository", "full_name")
        self.key = f"repositories/{body.need_number('repository', 'id')}"
        self.url = body.text("repository", "html_url")

    @property
    def entity(self) -> Entity:
        return Entity("repository", self.name, url=self.url)

    def branch(self, name: str) -> Entity:
        return Entity("branch", f"{self.name}:{name}", name, f"{self.url}/tree/{name}")

    def commit(self, sha: str, title: str = "") -> Entity:
        return Entity("commit", sha, title, self.commit_url(sha))

    def commit_url(self, sha: str) -> str:
        return f"{self.url}/commit/{sha}"


def actor(body: Document) -> list[Entity]:
    login = body.text("sender", "login")
    return [Entity("person", login, url=body.text("sender", "html_url")).actor()] if login else []

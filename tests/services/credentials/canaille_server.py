"""Canaille, an OAuth server that somebody else wrote, in a process of its own: `PORT REDIRECT_URI rotating|keeping`.

By itself it rotates refresh tokens: a new one with each refresh, the old one dead. Its library's switch for the
other way is a constant of the grant's class.
"""

from __future__ import annotations

import os
import sys
import threading

from canaille import create_app
from canaille.app import models
from canaille.backends import Backend
from canaille.oidc.provider import RefreshTokenGrant
from werkzeug.serving import make_server

USER, PASSWORD = "jane", "correct horse battery staple"
CLIENT_ID, CLIENT_SECRET = "tieline", "the secret of: tieline/%+"


def main() -> None:
    port, redirect_uri, manner = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    if manner == "keeping":
        RefreshTokenGrant.INCLUDE_NEW_REFRESH_TOKEN = False
        RefreshTokenGrant.revoke_old_credential = lambda _self, _credential: None
    app = create_app(
        {
            "SECRET_KEY": "of a test",
            "SERVER_NAME": f"127.0.0.1:{port}",
            "PREFERRED_URL_SCHEME": "http",
            "SESSION_COOKIE_SECURE": False,
            "CANAILLE": {"DATABASE": "memory", "LOGGING": {"version": 1}},
            "CANAILLE_OIDC": {"REQUIRE_NONCE": False, "TRUSTED_DOMAINS": []},
        }
    )
    with app.app_context():
        user = models.User(
            user_name=USER,
            family_name="Doe",
            formatted_name="Jane Doe",
            emails=["jane@provider.example"],
            password=PASSWORD,
        )
        Backend.instance.save(user)
        client = models.Client(
            client_id=CLIENT_ID,
            client_name="Tieline",
            client_secret=CLIENT_SECRET,
            redirect_uris=[redirect_uri],
            grant_types=["authorization_code", "refresh_token", "client_credentials"],
            response_types=["code"],
            scope=["openid", "profile", "email"],
            token_endpoint_auth_method="client_secret_basic",
        )
        Backend.instance.save(client)
        client.audience = [client]
        Backend.instance.save(client)
    # Whoever started us holds the other end of our stdin.
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    server = make_server("127.0.0.1", port, app)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    main()

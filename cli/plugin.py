"""`tieline plugin`: which external services can be connected."""

from __future__ import annotations

import argparse

from cli.client import client
from cli.options import add_paging
from cli.output import show_list
from tieline.registry.v1 import catalogue_pb2_grpc
from tieline.registry.v1.catalogue_pb2 import ListPluginsRequest, Plugin


def arguments(verb: argparse.ArgumentParser) -> None:
    actions = verb.add_subparsers(dest="action", metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="show all")
    add_paging(listing)


async def plugin(options: argparse.Namespace) -> None:
    async with client(options) as installation:
        stub = catalogue_pb2_grpc.CatalogueServiceStub(installation.registry)
        page = await stub.ListPlugins(
            ListPluginsRequest(page_size=options.limit, page_token=options.page_token)
        )
        show_list(options, page.plugins, map(_line, page.plugins), page.next_page_token)


def _line(one: Plugin) -> str:
    return f"{one.name:<40} {one.default_version or 'none active':<12} {one.title}"

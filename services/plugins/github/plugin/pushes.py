"""Pushes: commits that reached a branch, and tags and branches that came or went."""

from __future__ import annotations

from tieline.sdk import Category, Change, Document, Entity, Event, Evidence, Input, InvalidInput

from .repository import Repository, actor

COMMITS = 40  # of a push, as entities and evidence; more are counted


def pushed(body: Document, _: Input) -> Event:
    repository = Repository(body)
    ref = body.need_text("ref")
    before, after = body.need_text("before"), body.need_text("after")
    kind, _slash, name = ref.removeprefix("refs/").partition("/")
    if kind not in {"heads", "tags"}:
        raise InvalidInput("a push is to a branch or a tag")
    is_branch, deleted = kind == "heads", body.flag("deleted")
    commits = [] if deleted else list(body.objects("commits"))
    target = repository.branch(name) if is_branch else Entity("tag", f"{repository.name}:{name}", name)
    moved = is_branch and not deleted
    return Event(
        type=_type(is_branch=is_branch, deleted=deleted),
        title=_title(body, repository.name, name, len(commits), is_branch=is_branch, deleted=deleted),
        # A branch can be moved there and back and there again: the time tells these apart.
        external_key=f"{repository.key}/{ref}/{before}..{after}@{body.number('repository', 'pushed_at')}",
        ordering_key=f"{repository.key}/{ref}",
        category=Category.DELIVERY,
        # The commits may be old; the push is what happened.
        occurred_at=body.time("repository", "pushed_at"),
        entities=[
            target.subject(),
            repository.entity,
            *actor(body),
            *([] if deleted else [repository.commit(after, _headline(body.text("head_commit", "message")))]),
            *(_commit(repository, commit) for commit in commits[-COMMITS:] if commit.text("id") != after),
        ],
        evidence=_evidence(body, commits, deleted=deleted),
        attributes={
            "ref": ref,
            "before": before,
            "after": after,
            "commits": len(commits),
            "created": body.flag("created"),
            "forced": body.flag("forced"),
        },
        change=Change(kind=Change.Kind.COMMIT, paths=_paths(commits)) if moved else None,
    )


def _type(*, is_branch: bool, deleted: bool) -> str:
    if is_branch:
        return "github.branch.deleted" if deleted else "github.push"
    return "github.tag.deleted" if deleted else "github.tag.pushed"


def _title(
    body: Document, repository: str, name: str, commits: int, *, is_branch: bool, deleted: bool
) -> str:
    who = body.text("pusher", "name") or body.text("sender", "login") or "Somebody"
    what = "branch" if is_branch else "tag"
    if deleted:
        return f"{who} deleted {what} {name} of {repository}"
    if not is_branch or (body.flag("created") and not commits):
        return f"{who} pushed {what} {name} to {repository}"
    count = "1 commit" if commits == 1 else f"{commits} commits"
    forced = "force-pushed" if body.flag("forced") else "pushed"
    headline = _headline(body.text("head_commit", "message"))
    return f"{who} {forced} {count} to {repository}:{name}" + (f": {headline}" if headline else "")


def _commit(repository: Repository, commit: Document) -> Entity:
    return repository.commit(commit.need_text("id"), _headline(commit.text("message")))


def _evidence(body: Document, commits: list[Document], *, deleted: bool) -> list[Evidence]:
    compare = [] if deleted else [Evidence("diff", body.text("compare"), "What the push changed")]
    return compare + [
        Evidence("commit", commit.text("url"), _headline(commit.text("message")))
        for commit in commits[-COMMITS:]
    ]


def _paths(commits: list[Document]) -> list[str]:
    """Newest commit first: if there are too many, what was touched last says most."""
    found = [
        path
        for commit in reversed(commits)
        for kind in ("added", "modified", "removed")
        for path in commit.texts(kind)
    ]
    return list(dict.fromkeys(found))


def _headline(message: str) -> str:
    return message.partition("\n")[0]

"""Push an artifact to a model repository on the hub: one commit, which holds all of it or does not exist.

Input is a `LocalArtifact`; output is the commit. The model, or the adapter where there is no model, is at the root of
the repository, where every library looks for it. Large files are uploaded first, each under its digest: the hub keeps
those of an interrupted push, and the next one sends only the others.
"""

import hashlib
import random
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from json import JSONDecodeError
from pathlib import Path
from tempfile import TemporaryDirectory
from traceback import walk_tb
from typing import Any

from hone_api import strictjson
from hone_api.artifacts.manifest import ArtifactManifest, list_folders, read_content
from hone_api.byte_sizes import format_bytes
from hone_api.io.terminal import hide_url_credentials
from hone_api.layout import ADAPTER, MANIFEST
from hone_api.reasons import (
    DESTINATION_MISSING,
    DESTINATION_OCCUPIED,
    HUB_UNAUTHORIZED,
    HUB_UNREACHABLE,
    HoneError,
)
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_token, set_client_factory
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils._http import default_client_factory, parse_ratelimit_headers
from huggingface_hub.utils.tqdm import disable_progress_bars

from hone_trainer.push.artifact import LocalArtifact, LocalFile
from hone_trainer.push.plan import HeldFile, PushPlan, make_damage_error, plan_push, refuse_other_job
from hone_trainer.remote.refusals import Answer, Verdict, judge_answer, make_destination_error, read_answer
from hone_trainer.runtime.errors import classify_error, is_connection_error

# The artifact's manifest in the repository. Another name than in an artifact, since its paths are those of an artifact.
HUB_MANIFEST = "hone-manifest.json"
# Files of a repository that were made with it or written by hand, and that may stay next to an artifact.
KEPT_FILES = frozenset({".gitattributes", ".gitignore", "README.md", "LICENSE", "LICENSE.txt", "LICENSE.md"})
ATTEMPTS = 6
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 1.0, 30.0
# Without a byte for this long a request has failed. The hub may need long for a commit, which is then found complete.
CONNECT_SECONDS, SILENCE_SECONDS = 10.0, 120.0
# The hub counts requests in windows of five minutes: a push waits at most this long when the hub requests it.
LONGEST_LIMIT_SECONDS = 300.0
MOST_CHARACTERS = 600
# How often everything is uploaded whose content differs from the file's afterwards.
DAMAGED_ATTEMPTS = 3
# Somebody else has committed meanwhile, or commits now.
_CONFLICTS = (409, 412)
_SENDABLE = re.compile("[!-~]+")


@dataclass
class HubPush:
    """Pushes an artifact to one repository. `where` begins messages; `token_field` is what remedies name."""

    repo: str
    is_private: bool
    token: str | None
    where: str
    token_field: str
    note: Callable[[str], None]
    first_wait_seconds: float = FIRST_WAIT_SECONDS
    silence_seconds: float = SILENCE_SECONDS

    def push(self, artifact: LocalArtifact) -> str:
        """Make the newest commit the artifact, and return it. Raises HoneError.

        Reasons: HubUnauthorized, HubUnreachable, DestinationMissing, DestinationOccupied, DestinationRefused.
        """
        self._refuse_unusable_token()
        disable_progress_bars()
        set_client_factory(self._make_client)
        api = HfApi(token=self.token)
        failed = 0
        while True:
            try:
                return self._push(api, artifact)
            except HoneError:
                raise
            except Exception as error:
                failed += 1
                if not _is_passing(error) or failed >= ATTEMPTS:
                    raise self._explain(error) from error
                self.note(f"the hub failed: {_describe(error)}: trying again")
                longest = min(self.first_wait_seconds * 2**failed, LONGEST_WAIT_SECONDS)
                time.sleep(max(_read_wait(error), random.uniform(longest / 2, longest)))

    def _refuse_unusable_token(self) -> None:
        """Raise HoneError HubUnauthorized for a token that the HTTP client would quote in its error."""
        token = self.token or get_token()
        if token and not _SENDABLE.fullmatch(token):
            found = f"{self.where}, and its token has a space, a line feed or another character that no token has"
            remedy = f"Write the token again, without quotes and the like, in {self.token_field}."
            raise HoneError(HUB_UNAUTHORIZED, found, remedy=remedy)

    def _make_client(self) -> Any:
        """Return the HTTP client of the library, which has no timeouts by default: a silent hub would hold a push."""
        client: Any = default_client_factory()
        client.timeout = (CONNECT_SECONDS, self.silence_seconds, self.silence_seconds, None)
        return client

    def _push(self, api: HfApi, artifact: LocalArtifact) -> str:
        """Push once. Raises HoneError, and exceptions of huggingface_hub."""
        files = list_repository_files(artifact)
        head = self._find_head(api)
        for _ in range(DAMAGED_ATTEMPTS):
            held = self._list_held(api, head)
            earlier = self._check_earlier(api, head, artifact.manifest, held)
            plan = plan_push(files, held, _is_same, earlier)
            if not plan.upload and not plan.remove:
                self.note(f"{self.repo} is complete at commit {head}")
                return head
            head = self._commit(api, plan, artifact, head)
        held = self._list_held(api, head)
        plan = plan_push(files, held, _is_same)
        if plan.upload:
            raise make_damage_error(HUB_UNREACHABLE, self.where, plan, DAMAGED_ATTEMPTS)
        return head

    def _find_head(self, api: HfApi) -> str:
        """Return the newest commit of the repository, which is created if it does not exist."""
        try:
            found = api.model_info(self.repo, timeout=self.silence_seconds)
            if self.is_private and found.private is False:
                self.note(f"warning: {self.repo} exists and is public: everybody can read what is pushed to it")
            return str(found.sha)
        except RepositoryNotFoundError:
            kind = "private" if self.is_private else "public"
            self.note(f"creating the {kind} repository {self.repo}")
            api.create_repo(self.repo, private=self.is_private, exist_ok=True)
            return str(api.model_info(self.repo, timeout=self.silence_seconds).sha)

    def _list_held(self, api: HfApi, commit: str) -> dict[str, HeldFile]:
        found = api.list_repo_tree(self.repo, recursive=True, revision=commit)
        return {
            each.path: HeldFile(each.size, f"sha256:{each.lfs.sha256}" if each.lfs else f"blob:{each.blob_id}")
            for each in found
            if isinstance(each, RepoFile)
        }

    def _check_earlier(self, api: HfApi, commit: str, now: ArtifactManifest, held: Mapping[str, HeldFile]) -> list[str]:
        """Return the files of the artifact that the repository holds.

        Raises HoneError DestinationOccupied where that is another job's, or where there is something else.
        """
        remedy = f"Name another repository than {self.repo}, or remove its files."
        if HUB_MANIFEST not in held:
            if others := sorted(held.keys() - KEPT_FILES):
                found = f"{self.where}, which holds {others[0]} and no {HUB_MANIFEST}"
                raise HoneError(DESTINATION_OCCUPIED, found, remedy=remedy)
            return []
        with TemporaryDirectory() as folder:
            path = Path(api.hf_hub_download(self.repo, HUB_MANIFEST, revision=commit, local_dir=folder))
            try:
                before = ArtifactManifest.model_validate(strictjson.parse(read_content(path)))
            except ValueError:
                found = f"{self.where}, and its {HUB_MANIFEST} is not the manifest of an artifact"
                raise HoneError(DESTINATION_OCCUPIED, found, remedy=remedy) from None
        refuse_other_job(self.where, before, now, remedy=remedy)
        return [_place(name, before) for name in before.files]

    def _commit(self, api: HfApi, plan: PushPlan, artifact: LocalArtifact, head: str) -> str:
        self.note(f"uploading {len(plan.upload)} files, {format_bytes(plan.upload_bytes)}, to {self.repo}")
        added = [CommitOperationAdd(file.name, file.path) for file in plan.upload]
        removed = [CommitOperationDelete(name) for name in plan.remove]
        manifest = artifact.manifest
        done = api.create_commit(
            self.repo,
            [*added, *removed],
            commit_message=f"Push {manifest.kind} of job {manifest.job}",
            commit_description=f"Artifact {manifest.digest}",
            parent_commit=head,
        )
        return str(done.oid)

    def _explain(self, error: Exception) -> HoneError:
        """Return the failure that an exception of huggingface_hub means."""
        text, answer = _describe(error), _find_answer(error)
        field = self.where.partition(" is ")[0].replace("The", "the")
        network = "Check the network and proxy, and the variable HF_ENDPOINT if it is set. Or push again later."
        if answer is None and is_connection_error(error):
            return HoneError(
                HUB_UNREACHABLE, f"{self.where}, and the hub failed {ATTEMPTS} times: {text}", remedy=network
            )
        if answer is None and _is_unreadable(error):
            found = f"{self.where}, and {constants.ENDPOINT} answers, and not as the hub does: {text}"
            return HoneError(
                HUB_UNREACHABLE,
                hide_url_credentials(found),
                remedy="Correct the variable HF_ENDPOINT if it is set, or log in at the portal of the network.",
            )
        if answer is None:
            if isinstance(error, ValueError):  # also refusals of single files, which come with status 200
                found = f"{self.where}, and the hub refuses the commit: {text}"
                return make_destination_error(found, Verdict.REFUSED, field)
            return classify_error(error)
        verdict = judge_answer(answer)
        if verdict is Verdict.PASSING:
            return HoneError(
                HUB_UNREACHABLE, f"{self.where}, and the hub failed {ATTEMPTS} times: {text}", remedy=network
            )
        if verdict is Verdict.UNAUTHORIZED:
            remedy = f"Give a token that may write to {self.repo}, in {self.token_field}."
            return HoneError(HUB_UNAUTHORIZED, f"{self.where}, and the hub refused access: {text}", remedy=remedy)
        if verdict is Verdict.MISSING:
            remedy = f"Create {self.repo}, or correct {field}. A mirror that HF_ENDPOINT names may take no writes."
            return HoneError(DESTINATION_MISSING, f"{self.where}, and it can't be created: {text}", remedy=remedy)
        return make_destination_error(f"{self.where}, and the hub refuses the commit: {text}", verdict, field)


def list_repository_files(artifact: LocalArtifact) -> list[LocalFile]:
    """Return the files by their names in a repository, with the manifest."""
    digest = hashlib.sha256(artifact.content).hexdigest()
    manifest = LocalFile(HUB_MANIFEST, artifact.root / MANIFEST, len(artifact.content), digest)
    placed = [
        LocalFile(_place(file.name, artifact.manifest), file.path, file.size, file.sha256) for file in artifact.files
    ]
    return [*placed, manifest]


def _place(name: str, manifest: ArtifactManifest) -> str:
    """Return the name in a repository of a file of an artifact: that of the main folder is at the root."""
    folders = list_folders(manifest.kind)
    main = next((folder for folder in folders if folder != ADAPTER), folders[0])
    return name.removeprefix(f"{main}/")


def _is_same(file: LocalFile, held: HeldFile) -> bool:
    """Return whether a file of the same size on the hub has the same content, by its SHA-256 or its git object."""
    kind, _, digest = held.digest.partition(":")
    if kind == "sha256":
        return digest == file.sha256
    found = hashlib.sha1(f"blob {file.size}\0".encode(), usedforsecurity=False)
    with file.path.open("rb") as content:
        while block := content.read(1024**2):
            found.update(block)
    return digest == found.hexdigest()


def _find_answer(error: Exception) -> Answer | None:
    """Return the hub's answer that an exception is about; None for other failures."""
    if not isinstance(error, HfHubHTTPError):
        return None
    sentence = str(error.server_message or getattr(error.response, "text", "") or "")
    return read_answer(error.response.status_code, sentence.encode())


def _is_passing(error: Exception) -> bool:
    """Return whether the same push may succeed in a moment."""
    answer = _find_answer(error)
    if answer is None:
        return is_connection_error(error)
    return answer.status in _CONFLICTS or judge_answer(answer) is Verdict.PASSING


def _is_unreadable(error: Exception) -> bool:
    """Return whether the library could not read an answer, such as a page of a portal."""
    if isinstance(error, JSONDecodeError):
        return True
    frames = [frame.f_globals.get("__name__", "") for frame, _ in walk_tb(error.__traceback__)]
    return isinstance(error, KeyError | TypeError | AttributeError) and frames[-1].startswith("huggingface_hub")


def _read_wait(error: Exception) -> float:
    """Return the seconds that the hub asks to wait for."""
    if not isinstance(error, HfHubHTTPError):
        return 0.0
    limit = parse_ratelimit_headers(error.response.headers)
    if limit is not None and limit.remaining == 0:
        return min(float(limit.reset_in_seconds), LONGEST_LIMIT_SECONDS)
    text = error.response.headers.get("Retry-After", "")
    return min(float(text), LONGEST_LIMIT_SECONDS) if text.isascii() and text.isdigit() else 0.0


def _describe(error: Exception) -> str:
    """Return what the hub answered, or an exception's text without the queries of URLs, which may be signatures."""
    answer = _find_answer(error)
    text = str(answer) if answer and answer.sentence else hide_url_credentials(" ".join(str(error).split()))
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS].rstrip()} …"

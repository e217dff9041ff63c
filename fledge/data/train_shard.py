"""The training shard, tokenised while the corpus is written: its texts need not be read again. Imports no torch."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from pathlib import Path

from fledge.data.beside import remove, scratch_of
from fledge.data.in_threads import threads_to_use
from fledge.data.shards import write_shard
from fledge.errors import TokenizerError
from fledge.log import Progress
from fledge.text.tokenizer import Tokenizer, byte_level

NAMES = ("train.bin", "train.idx.npy")


class TrainShard:
    """Scratch files of a folder's training shard. `counts` holds the tokens of each document once they are whole."""

    def __init__(self, out: Path, tokenizer: Tokenizer | None, threads: int):
        self.paths = [scratch_of(out / name) for name in NAMES]
        self.tokenizer, self.threads = tokenizer, threads_to_use(threads)
        self.counts: list[int] | None = None

    def take(self, texts: Iterator[str], total: int) -> None:
        """Use up the texts, of which there are `total`. One that can't be tokenised costs this shard, not the corpus:
        its error is met again when that is there."""
        tokens, index = self.paths
        if self.tokenizer is not None:
            try:
                self.counts = write_shard(counted(texts, "train", total), self.tokenizer, tokens, index, self.threads)
            except TokenizerError:
                self.remove()
        deque(texts, maxlen=0)

    def remove(self) -> None:
        """Remove the files, if they didn't take the shard's place."""
        self.counts = None
        for path in self.paths:
            remove(path)


def given_tokenizer(name: str | Path | None) -> Tokenizer | None:
    """`bytes` or what a path holds; None for `characters`, which are known once the corpus is. Raises TokenizerError
    for one that isn't there or can't be used."""
    if name is None or str(name) == "characters":
        return None
    if str(name) == "bytes":
        return byte_level()
    if not Path(name).exists():
        raise TokenizerError(f"{name}: expected characters, bytes or a tokenizer, found none; check the path")
    return Tokenizer.load(name)


def counted(texts: Iterator[str], split: str, total: int) -> Iterator[str]:
    """The texts of one split, with progress for people."""
    progress = Progress(f"tokenise {split}", total, every_seconds=5.0)
    for done, text in enumerate(texts, 1):
        yield text
        progress.update(done)
    progress.close()

"""The training shard, tokenised while the corpus is written: its texts need not be read again. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fledge.data.beside import remove, scratch_of
from fledge.data.in_threads import threads_to_use
from fledge.data.shards import write_shard
from fledge.log import Progress
from fledge.text.tokenizer import Tokenizer, byte_level

NAMES = ("train.bin", "train.idx.npy")


class TrainShard:
    """Scratch files of a folder's training shard. `counts` holds the tokens of each document once they are whole."""

    def __init__(self, out: Path, tokenizer: str | None, threads: int):
        self.paths = [scratch_of(out / name) for name in NAMES]
        self.name, self.threads = tokenizer, threads_to_use(threads)
        self.tokenizer: Tokenizer | None = None
        self.counts: list[int] | None = None

    def take(self, texts: Iterator[str], total: int) -> None:
        """Use up the texts, of which there are `total`. `characters` can't be tokenised before all were seen."""
        if self.name is None or self.name == "characters":
            for _ in texts:
                pass
            return
        tokens, index = self.paths
        self.tokenizer = byte_level() if self.name == "bytes" else Tokenizer.load(self.name)
        self.counts = write_shard(counted(texts, "train", total), self.tokenizer, tokens, index, self.threads)

    def remove(self) -> None:
        """Remove the files, if they didn't take the shard's place."""
        self.counts = None
        for path in self.paths:
            remove(path)


def counted(texts: Iterator[str], split: str, total: int) -> Iterator[str]:
    """The texts of one split, with progress for people."""
    progress = Progress(f"tokenise {split}", total, every_seconds=5.0)
    for done, text in enumerate(texts, 1):
        yield text
        progress.update(done)
    progress.close()

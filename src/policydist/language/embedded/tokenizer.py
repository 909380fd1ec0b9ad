"""A tokenizer of single characters: printable ASCII and the line break, one token each."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import Qwen2Tokenizer

SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))


def build_tokenizer() -> Qwen2Tokenizer:
    """Ids 0 to 3 are pad, bos, eos and unknown, then the characters in code order. Nothing is added to a text.

    It is a byte-pair tokenizer without a single merge, of the class that transformers puts beside every Qwen2 model:
    `AutoTokenizer` takes that class whatever was saved. Like it, it drops characters that it does not know.
    """
    from transformers import Qwen2Tokenizer

    # Byte-pair vocabularies spell the two blank characters by visible ones.
    letters = CHARACTERS.replace("\n", "Ċ").replace(" ", "Ġ")
    return Qwen2Tokenizer(
        vocab={token: i for i, token in enumerate((*SPECIAL, *letters))},
        merges=[],
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
        think_end="#",  # working stands before this character, the answer behind it
    )

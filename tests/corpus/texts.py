# ruff: noqa: RUF001 - texts with characters that look like others are the point
"""Texts for tokenizers: 50 written by hand, and random ones."""

from __future__ import annotations

import random
from collections.abc import Iterator

HAND_MADE = (
    "",
    " ",
    "  leading and trailing  ",
    "\n",
    "\r\n\r\n",
    "\t\tindented\n\t\ttwice\n",
    "a\u00a0b\u2003c\u200bd\ufeffe",
    "Hello, world!",
    "don't can't I'll we've they'd",
    "1234567890 3.14159 -1e-10 0xdeadbeef 1_000_000",
    "def f(x: int) -> str:\n    return f'{x!r:>10}'  # comment\n",
    "for (int i = 0; i < n; ++i) { a[i] = b[i] ^ ~c[i]; }\n",
    "SELECT * FROM \"t\" WHERE a <> 'b' -- c\n",
    '<html><body class="x">&nbsp;&amp;</body></html>\n<!-- <![CDATA[ ]]> -->',
    '{"a": [1, 2.5, null, true], "b": "\\u00e9\\n\\"q\\""}',
    "```python\nprint('hi')\n```\n",
    "C:\\Windows\\System32 /usr/bin/env https://example.org/?q=%20&r=1#s",
    "\\begin{align} x^2 &= \\frac{1}{2} \\\\ \\end{align}",
    "naïve café Zürich façade Ångström œuvre",
    "e\u0301 n\u0303 o\u0302\u0323 a\u030a",
    "Z\u0351\u036b\u0343a\u0334\u0321l\u0328\u0321g\u0335o",
    "Привет, мир! Ёжик",
    "Γειά σου Κόσμε",
    "שלום עולם",
    "مرحبا بالعالم \u200f\u202bمختلط abc\u202c",
    "नमस्ते दुनिया क्षत्रिय",
    "สวัสดีชาวโลก",
    "ភាសាខ្មែរ မြန်မာ ລາວ",
    "안녕하세요 세계",
    "\u1112\u1161\u11ab\u1100\u1173\u11af",
    "こんにちは世界 カタカナ ｶﾀｶﾅ",
    "你好，世界！繁體中文",
    "𠮷野家 𠜎𠜱𠝹 㐀㐁",
    "葛\U000e0100 邊\U000e0101",
    "🙂😀🤖",
    "👩‍👩‍👧‍👦 👩🏽‍🚀 🏳️‍🌈 🧑‍💻",
    "🇩🇪🇯🇵🇺🇳 1️⃣ ☎️ ☎︎",
    "𝕳𝖊𝖑𝖑𝖔 𝒲𝑜𝓇𝓁𝒹 ①②③ ﬁ ﬀ ß ẞ İ ı",
    "∀x∈ℝ: ⌈x⌉ = −⌊−x⌋ ⟹ ∑∫√∞≠≤",
    "┌─┐\n│x│\n└─┘ █▓▒░",
    "\x00\x01\x02\x07\x08\x0b\x0c\x1b[31mred\x1b[0m\x7f\x80\x9f",
    "\ufffd \ufffd\ufffd \ufffe\uffff \ue000 \U000f0000 \U0010ffff",
    "<s> </s> <unk> <pad> [INST] [/INST] <<SYS>>",
    "<|im_start|>user\nhi<|im_end|><|endoftext|><|eot_id|>",
    "<｜User｜><｜Assistant｜><｜tool▁calls▁begin｜><think></think>",
    '<start_of_turn>model<end_of_turn><|channel>thought<channel|><|"|>',
    "▁▁ ▁a Ġ Ċ ĉ <0x0A> <0xE4><0xBD>",
    "a" * 300,
    "🙂" * 60 + "é" * 60,
    "the cat sat on the mat. " * 20,
)

_RANGES = (
    ((0x20, 0x7E), 30),
    ((0x00, 0x1F), 2),
    ((0x80, 0x24F), 8),
    ((0x300, 0x36F), 3),
    ((0x370, 0x52F), 4),
    ((0x590, 0x6FF), 4),
    ((0x900, 0xDFF), 4),
    ((0xE00, 0x11FF), 4),
    ((0x2000, 0x2BFF), 4),
    ((0x3040, 0x30FF), 4),
    ((0x4E00, 0x9FFF), 6),
    ((0xAC00, 0xD7A3), 4),
    ((0xE000, 0xFFFF), 1),
    ((0x1F300, 0x1FAFF), 6),
    ((0x20000, 0x2A6DF), 2),
    ((0x10000, 0x10FFFF), 1),
)
"""Ranges of characters with their weights. None of them has surrogates, which are no text."""


def random_texts(seed: int, count: int) -> Iterator[str]:
    """Yield texts of up to 40 characters, each of few kinds of characters, as texts are."""
    drawn = random.Random(seed)
    ranges, weights = zip(*_RANGES, strict=True)
    for _ in range(count):
        kinds = drawn.choices(ranges, weights, k=drawn.randint(1, 3))
        size = drawn.randint(0, 40)
        characters = [" " if drawn.random() < 0.15 else chr(drawn.randint(*drawn.choice(kinds))) for _ in range(size)]
        yield "".join(characters)


def random_ids(seed: int, count: int, size: int) -> Iterator[list[int]]:
    """Yield sequences of up to 24 ids below a size: what a model may write that was trained badly."""
    drawn = random.Random(seed)
    for _ in range(count):
        yield [drawn.randrange(size) for _ in range(drawn.randint(0, 24))]

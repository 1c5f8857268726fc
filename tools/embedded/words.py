"""The closed vocabulary of the synthetic text: every word the embedded model is taught."""

COLOURS: tuple[str, ...] = (
    "amber", "black", "blue", "brown", "copper", "coral", "crimson", "golden",
    "green", "grey", "indigo", "ivory", "navy", "olive", "orange", "pink",
    "purple", "red", "scarlet", "silver", "teal", "violet", "white", "yellow",
)  # fmt: skip

THINGS: tuple[str, ...] = (
    "bag", "basket", "bell", "book", "bottle", "box", "candle", "chair",
    "clock", "coat", "cup", "door", "drum", "flag", "glove", "hat",
    "jar", "key", "kite", "ladder", "lamp", "mirror", "pen", "plate",
    "ring", "rope", "shelf", "spoon", "table", "tent", "vase", "wheel",
)  # fmt: skip

CODES: tuple[int, ...] = tuple(range(10, 100))

SUBJECTS: tuple[str, ...] = (
    "The clerk", "A visitor", "The guard", "The cook",
    "A child", "The driver", "A teacher", "The gardener",
)  # fmt: skip

DEEDS: tuple[str, ...] = ("waited", "rested", "worked", "sang", "slept", "laughed", "stood", "talked")

PLACES: tuple[str, ...] = (
    "near the river", "in the garden", "behind the house", "under the bridge",
    "at the market", "by the window", "on the hill", "beside the road",
)  # fmt: skip

TIMES: tuple[str, ...] = (
    "in the morning", "after lunch", "before noon", "until evening", "all day", "at night",
)  # fmt: skip

PREAMBLES: tuple[str, ...] = (
    "You are a helpful assistant.",
    "Remember these facts.",
    "Here are the facts.",
    "You are a helpful assistant. Answer from the facts.",
)

GREETINGS: tuple[tuple[str, str], ...] = (
    ("Hello.", "Hello. Ask me for a code."),
    ("Hello!", "Hello. Ask me for a code."),
    ("Who are you?", "I am a small model. Ask me for a code."),
    ("Thank you.", "You are welcome."),
)

STORY_REQUEST = "Tell me a story."

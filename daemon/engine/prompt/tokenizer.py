"""A model's tokenizer, its chat templates, and the grammars that were compiled for it; used off the MLX thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import cached_property
from typing import Any, TypeVar, cast

from transformers import PreTrainedTokenizerBase

from daemon.cache.lru_dict import LruDict
from daemon.engine.output.chat_markup import ChatMarkup
from daemon.engine.output.detokenizer import Decode
from daemon.engine.output.token_text import TokenText, token_text
from daemon.engine.prompt.chat_templates import Templates
from daemon.engine.prompt.places import TokenIds, starts_of
from daemon.engine.prompt.segments import Segments, marks_of
from daemon.engine.prompt.special_tokens import unwritten_ids
from daemon.engine.prompt.template_files import ChatTemplates
from daemon.engine.prompt.template_probe import Probe
from daemon.engine.prompt.template_shape import TemplateShape
from daemon.engine.structured_output.matcher import Vocabulary, vocabulary
from daemon.shared.errors import invalid
from mlx_sidecar.v1 import sidecar_pb2 as pb

_GRAMMARS = 16
"""Compiled grammars that stay in memory for each."""

T = TypeVar("T")

TOKEN_CHARACTERS = 256
"""Most characters of the text of a single token beside its log-probability."""


class Tokenizer:
    """
    A model's tokenizer and chat template.

    Threads take turns in encoding, which changes the state of a tokenizer. Decoding takes no turn, because running
    streams must not wait while a long prompt is encoded.

    Args:
        wrapper: The tokenizer as mlx-lm wraps it.
        templates: Renders the chat template.
        chat_templates: The templates of the model.

    Attributes:
        eos_ids: Ids that end a sequence.
        size: Number of ids, added tokens included.
    """

    def __init__(self, wrapper: Any, templates: Templates, chat_templates: ChatTemplates | None = None) -> None:
        self._wrapper = wrapper
        self._templates = templates
        self._chat_templates = chat_templates or ChatTemplates({})
        self._lock = threading.Lock()
        self._vocabulary: Vocabulary | None = None
        self._grammars: LruDict[Hashable, Any] = LruDict(_GRAMMARS)
        self._grammars_lock = threading.Lock()
        self._texts: dict[int, str] = {}
        """Texts of single tokens that were asked for."""
        self.eos_ids = frozenset(int(i) for i in wrapper.eos_token_ids)
        self.size = len(wrapper)

    def warm_up(self) -> None:
        """Find out what the first conversation needs to know, but for its template."""
        _ = self.markup
        self.encode_turns("", pb.CacheOptions())

    def difference(self, other: Tokenizer) -> str:
        """Return how the ids of another tokenizer differ from its own, in words; empty if they are the same."""
        if self is other:
            return ""
        mine, others = self._wrapper.get_vocab(), other._wrapper.get_vocab()
        if mine == others:
            return ""
        moved = sum(token in mine and mine[token] != id_ for token, id_ in others.items())
        return (
            f"{len(mine)} tokens beside {len(others)}: {len(mine.keys() - others.keys())} only here, "
            f"{len(others.keys() - mine.keys())} only there, and {moved} with another id"
        )

    @property
    def has_chat_template(self) -> bool:
        """Whether the model has a chat template, which `render` needs."""
        return bool(self._chat_templates or self._wrapper.has_chat_template)

    def encode(self, text: str, *, special: bool) -> TokenIds:
        """Return the ids of a text, with the usual special tokens (such as BOS) if `special`."""
        with self._lock:  # fast tokenizers panic when two threads change padding or truncation
            if not _tells_offsets(self._wrapper._tokenizer):
                return TokenIds(self._wrapper.encode(text, add_special_tokens=special, verbose=False))
            return self._encoded([text], special=special)[0]

    def encode_turns(self, text: str, cache: pb.CacheOptions) -> TokenIds:
        """
        Return what `encode` returns for a conversation; turns that were encoded before are not encoded again.

        Args:
            text: The conversation, with all special tokens that it needs.
            cache: Turns are reused and remembered as prefixes are: under a salt, and as the mode says.
        """
        if cache.mode == pb.CACHE_MODE_BYPASS or not _tells_offsets(self._wrapper._tokenizer):
            return self.encode(text, special=False)
        with self._lock:
            if self._segments is None:
                return self._encoded([text])[0]
            return self._segments.encode(text, cache.salt, stores=cache.mode != pb.CACHE_MODE_READ_ONLY)

    def forget_turns(self) -> None:
        """Forget the turns that were encoded; any thread, and waits for none."""
        segments = self.__dict__.get("_segments")
        if segments is not None:
            segments.forget()

    def _encoded(self, texts: list[str], *, special: bool = False) -> list[TokenIds]:
        """Return the ids of texts, and where their tokens begin; for the thread that has the lock."""
        # Not verbose: the error for a prompt that is too long says more than the library's warning.
        options = {"add_special_tokens": special, "verbose": False, "return_offsets_mapping": True}
        encoded = self._wrapper._tokenizer(texts, **options)
        found = [TokenIds(ids) for ids in encoded["input_ids"]]
        for ids, offsets in zip(found, encoded["offset_mapping"], strict=True):
            ids.starts = starts_of(offsets)
        return found

    @cached_property
    def _segments(self) -> Segments | None:
        """What encodes conversations; None if the tokenizer does not encode their turns one by one."""
        marks = marks_of(self._wrapper._tokenizer.backend_tokenizer, self._chat_templates.sources)
        segments = Segments(self._encoded, marks) if marks else None
        return segments if segments is not None and segments.agrees() else None

    def encode_prompt(self, text: str) -> TokenIds:
        """Return the ids of a plain prompt; none for an empty text. A BOS at its beginning is not doubled."""
        if not text:
            return TokenIds()
        bos = self._wrapper.bos_token
        return self.encode(text, special=bos is None or not text.startswith(bos))

    def template_for(self, *, tools: bool) -> str | None:
        """
        Return the template of a conversation with or without tools; None if code and no template renders it.

        Raises:
            SidecarError: INVALID_ARGUMENT if the model has templates, and none for such a conversation.
        """
        if self._wrapper._chat_template is not None or not _plain(self._wrapper._tokenizer):
            return None
        return self._chat_templates.chosen(tools=tools)

    def shape(self, *, tools: bool) -> TemplateShape:
        """
        Return what the template of a conversation takes. Blocks while a template is tried for the first time.

        Raises:
            SidecarError: As `render` does.
        """
        template = self.template_for(tools=tools)
        if template is None:
            return self._shape_of_code
        return self._templates.shape(template, self._wrapper._tokenizer.special_tokens_map)

    def render(self, messages: Sequence[Mapping[str, Any]], now: float | None = None, /, **options: Any) -> str:
        """
        Return a conversation as text, by the model's own template.

        Args:
            messages: The conversation, as templates expect it.
            now: See `Templates.render`.
            options: Other variables of the template.

        Raises:
            SidecarError: INVALID_ARGUMENT if the template refuses the conversation, fails, or takes too much time or
                memory.
        """
        template = self.template_for(tools=bool(options.get("tools")))
        if template is None:
            with self._lock:
                return self._render_here(messages, options)
        options = {**self._wrapper._tokenizer.special_tokens_map, **options}
        return self._templates.render(template, messages, options, now)

    def log_losses(self, *, tools: bool) -> None:
        """Log that the template of such a conversation leaves out parts of it, once for each template."""
        self._templates.log_losses(self.template_for(tools=tools) or type(self._wrapper._tokenizer).__name__)

    @cached_property
    def _shape_of_code(self) -> TemplateShape:
        """The shape of code that renders in place of a template; code that ends needs no worker."""

        def render(messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> str:
            with self._lock:
                return self._render_here(messages, options)

        return Probe(render, "", lambda: True).shape(None)

    def _render_here(self, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> str:
        """Render with code of mlx-lm or transformers that is no template, and so cannot run in a worker."""
        try:
            if "enable_thinking" in options or self._wrapper._chat_template is not None:
                return str(self._wrapper.apply_chat_template(messages, tokenize=False, **options))
            # mlx-lm's wrapper would switch thinking on, even where the model has another default.
            tokenizer = self._wrapper._tokenizer
            return str(tokenizer.apply_chat_template(messages, tokenize=False, return_dict=False, **options))
        except Exception as error:  # such code may raise anything for conversations that it does not expect
            raise invalid("chat", f"cannot be rendered for this model ({type(error).__name__})") from error

    def vocabulary(self, field: str) -> Vocabulary:
        """
        Return the tokens as grammars need them. The first call makes them.

        Raises:
            SidecarError: INVALID_ARGUMENT for `field` of the request if grammars cannot use this tokenizer.
        """
        with self._lock:
            if self._vocabulary is None:
                self._vocabulary = vocabulary(self._wrapper._tokenizer, self.eos_ids, field)
            return self._vocabulary

    def remembered(self, key: Hashable, make: Callable[[], T]) -> T:
        """
        Return what was made for a key before, or make it: compiled grammars, which agents ask for again each turn.

        Args:
            key: All that the result depends on, besides the tokenizer.
            make: Makes the result, which must not be changed later. Two threads may make it at the same time.
        """
        with self._grammars_lock:
            known = self._grammars.get(key)
        if known is None:
            known = make()
            with self._grammars_lock:
                self._grammars.put(key, known)
        return cast("T", known)

    @cached_property
    def markup(self) -> ChatMarkup | None:
        """The model's marks of reasoning and tool calls; None if it has none."""
        markup = ChatMarkup(self._wrapper)
        return markup if markup.has_marks else None

    @cached_property
    def decode(self) -> Decode:
        """What returns the text of ids, without the special tokens that frame turns and texts."""
        return self._without(self._unwritten)

    @cached_property
    def _text(self) -> TokenText | None:
        return token_text(self._wrapper._tokenizer)

    @cached_property
    def _unwritten(self) -> frozenset[int]:
        return unwritten_ids(self._wrapper, self.eos_ids)

    def text_of(self, token: int) -> str:
        """
        Return the text of one token alone, its leading space included; special tokens have their names.

        Bytes that are no whole character are replacement characters. Texts are cut at TOKEN_CHARACTERS.
        """
        text = self._texts.get(token)
        if text is None:
            try:
                self._texts[token] = text = self._one_text(token)[:TOKEN_CHARACTERS]
            except (KeyError, IndexError, TypeError, ValueError):
                # Logits may be wider than the vocabulary. Some tokenizers refuse such ids, others ignore them.
                return ""
        return text

    def _one_text(self, token: int) -> str:
        # Some tokenizers drop the space of a text's first token, so another token comes before it.
        ids, before = self._before
        text = self.written([*ids, token])
        return text.removeprefix(before) if text.startswith(before) else self.written([token])

    @cached_property
    def _before(self) -> tuple[list[int], str]:
        """A token, and its text."""
        ids = self.encode("a", special=False)[-1:]
        return ids, self.written(ids)

    def written(self, ids: Sequence[int]) -> str:
        """Return the text of ids as the model reads it, with special tokens."""
        return str(self._wrapper.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def decoder(self, markup: ChatMarkup, *, calls: bool) -> Decode:
        """
        Return a `decode` that leaves the model's marks in.

        Args:
            markup: The model's marks.
            calls: Whether the text may hold tool calls. Then no special token is left out, because a call may need any.
        """
        ids = [] if calls else list(self._unwritten)
        tokens = zip(ids, self._wrapper.convert_ids_to_tokens(ids), strict=True)
        return self._without(frozenset(id_ for id_, token in tokens if not any(token in mark for mark in markup.marks)))

    def _without(self, dropped: frozenset[int]) -> Decode:
        """Return what decodes ids, some of which have no text."""
        if self._text is not None:
            return self._text.without(dropped)

        def decode(ids: Sequence[int]) -> str:
            shown = [id_ for id_ in ids if id_ not in dropped]
            return str(self._wrapper.decode(shown, skip_special_tokens=False, clean_up_tokenization_spaces=False))

        return decode


def _plain(tokenizer: Any) -> bool:
    """Return whether a tokenizer renders conversations with a template and nothing else."""
    return type(tokenizer).apply_chat_template is PreTrainedTokenizerBase.apply_chat_template


def _tells_offsets(tokenizer: Any) -> bool:
    """Return whether a tokenizer tells which characters its tokens stand for, and encodes as its library does."""
    kind, base = type(tokenizer), PreTrainedTokenizerBase
    own_way = not issubclass(kind, base) or kind.encode is not base.encode or kind.__call__ is not base.__call__
    return not own_way and bool(tokenizer.is_fast)

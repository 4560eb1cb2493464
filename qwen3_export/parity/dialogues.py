"""Dialogues in which template engines differ: tools, their results, thoughts, history, system, switches, null content.

Every consumer of an artifact renders the chat template with an engine of its own. These dialogues ask of an engine what
Qwen3's template asks of it; docs/templates.md tells where the engines part, and what is done about it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qwen3_export.checkpoint.template import ChatTemplate
from qwen3_export.errors import UnsupportedModelError

__all__ = ["DIALOGUES", "Dialogue", "same_text"]

Message = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialogue:
    """Messages with what a template is given beside them; ``enable_thinking`` None is not given."""

    name: str
    messages: tuple[Message, ...]
    tools: tuple[Message, ...] | None = None
    enable_thinking: bool | None = None
    add_generation_prompt: bool = True

    def rendered(self, template: ChatTemplate) -> str:
        """The text that transformers makes; UnsupportedModelError where the template does not take the dialogue."""
        switch: dict[str, Any] = {} if self.enable_thinking is None else {"enable_thinking": self.enable_thinking}
        return template.render(
            self.messages, tools=self.tools, add_generation_prompt=self.add_generation_prompt, **switch
        )


def _says(role: str, content: str | None, **more: Any) -> Message:
    return {"role": role, "content": content, **more}


def _calls(*calls: tuple[str, object]) -> list[Message]:
    return [{"type": "function", "function": {"name": name, "arguments": arguments}} for name, arguments in calls]


WEATHER: Message = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": 'The weather <now> & "later" in a city, e.g. Zürich',
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Its name"},
                "days": {"type": ["integer", "null"], "minimum": 1},
            },
            "required": ["city"],
        },
    },
}
CLOCK: Message = {"type": "function", "function": {"name": "clock", "description": "The time", "parameters": {}}}
TOOLS = (WEATHER, CLOCK)

HELLO = _says("user", "Hello")
PARIS = _says("user", "What is the weather in Paris?")
CALL = _says("assistant", "", tool_calls=_calls(("get_weather", {"city": "Paris", "days": 2})))
RESULT = _says("tool", '{"temperature": 20, "sky": "clear"}')
THOUGHT = "<think>\nThey greet me.\n</think>\n\n"

DIALOGUES: tuple[Dialogue, ...] = (
    Dialogue(name="question", messages=(HELLO,)),
    Dialogue(name="system", messages=(_says("system", "Be brief."), HELLO)),
    Dialogue(name="thinking on", messages=(HELLO,), enable_thinking=True),
    Dialogue(name="thinking off", messages=(HELLO,), enable_thinking=False),
    Dialogue(name="/no_think", messages=(_says("user", "Hello /no_think"),)),
    Dialogue(
        name="history",
        messages=(HELLO, _says("assistant", "Hi!"), _says("user", "And now?"), _says("assistant", "Bye.")),
    ),
    Dialogue(name="old thoughts", messages=(HELLO, _says("assistant", THOUGHT + "Hi!"), _says("user", "And?"))),
    Dialogue(
        name="old thoughts of their own",
        messages=(HELLO, _says("assistant", "Hi!", reasoning_content="They greet me."), _says("user", "And?")),
    ),
    Dialogue(name="special characters", messages=(_says("user", "a < b && 'c' > \"d\" \\n é 你好 🙂\n\ttab\r\nend"),)),
    Dialogue(name="tools", messages=(PARIS,), tools=TOOLS),
    Dialogue(name="tools and system", messages=(_says("system", "Be brief."), PARIS), tools=TOOLS),
    Dialogue(name="tool result", messages=(PARIS, CALL, RESULT), tools=TOOLS),
    Dialogue(
        name="thought before a call",
        messages=(PARIS, {**CALL, "content": THOUGHT + "I look."}, RESULT),
        tools=TOOLS,
    ),
    Dialogue(
        name="two calls, two results",
        messages=(
            PARIS,
            _says("assistant", "Both.", tool_calls=_calls(("get_weather", {"city": "Paris"}), ("clock", {}))),
            RESULT,
            _says("tool", "12:00"),
        ),
        tools=TOOLS,
    ),
    Dialogue(
        name="arguments as text",
        messages=(PARIS, _says("assistant", "", tool_calls=_calls(("get_weather", '{"city": "Paris"}'))), RESULT),
        tools=TOOLS,
    ),
    Dialogue(
        name="tool result, then a question",
        messages=(PARIS, CALL, RESULT, _says("assistant", THOUGHT + "20 degrees."), HELLO),
        tools=TOOLS,
    ),
    Dialogue(name="empty content", messages=(HELLO, _says("assistant", ""), _says("user", "Well?"))),
    Dialogue(name="null content", messages=(PARIS, {**CALL, "content": None}, RESULT), tools=TOOLS),
    Dialogue(name="no generation prompt", messages=(HELLO, _says("assistant", "Hi!")), add_generation_prompt=False),
)


def same_text(one: ChatTemplate, other: ChatTemplate) -> bool:
    """Whether two templates make the same text of every dialogue, and refuse the same ones."""
    return all(_text_or_none(dialogue, one) == _text_or_none(dialogue, other) for dialogue in DIALOGUES)


def _text_or_none(dialogue: Dialogue, template: ChatTemplate) -> str | None:
    try:
        return dialogue.rendered(template)
    except UnsupportedModelError:
        return None

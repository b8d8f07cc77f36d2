"""Training text: short chats and plain texts made from templates over `world`, and the rule that holds prompts out.

A document is a conversation (rendered in ChatML) or a plain text with a head. Its *prompts* are the messages of the
user, or the head. A prompt whose SHA-256 starts with a byte below `HELD_OUT_BYTES` is held out: `training_documents`
drops every document that has such a prompt, `held_out_documents` yields nothing else. The rule needs no list, so it
cannot go stale.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from . import world as w

IM_START, IM_END, END_OF_TEXT, MASK = "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|mask|>"
HELD_OUT_BYTES = 10  # of 256: 4 % of all prompts
SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a helpful assistant. Answer briefly.",
    "You know the towns of the valley.",
)


@dataclass(frozen=True)
class Document:
    """One training text. `turns` are (role, content); a plain text has no turns and is `head` + `body`."""

    kind: str
    turns: tuple[tuple[str, str], ...] = ()
    head: str = ""
    body: str = ""

    @property
    def prompts(self) -> tuple[str, ...]:
        """What a user would type to get the rest of the document, or to get the code in one of its answers."""
        if not self.turns:
            return (self.head,)
        asked = [text for role, text in self.turns if role == "user"]
        fence = "```python\n"
        code = [text.removeprefix(fence) for role, text in self.turns if role == "assistant" and text.startswith(fence)]
        return (*asked, *(source[: source.index("\n") + 1] for source in code))

    def render(self) -> str:
        """The text as the model sees it, without the end-of-text token that separates documents."""
        return render_chat(self.turns) if self.turns else self.head + self.body


def render_chat(turns: tuple[tuple[str, str], ...], generation_prompt: bool = False) -> str:
    """ChatML, equal to what the chat template of the tokenizer writes."""
    text = "".join(f"{IM_START}{role}\n{content}{IM_END}\n" for role, content in turns)
    return text + f"{IM_START}assistant\n" if generation_prompt else text


def is_held_out(prompt: str) -> bool:
    """Whether a prompt must not occur in training."""
    return hashlib.sha256(prompt.encode()).digest()[0] < HELD_OUT_BYTES


def training_documents(seed: int) -> Iterator[Document]:
    """Endless stream of documents of which no prompt is held out."""
    rng = random.Random(seed)
    while True:
        document = _draw_document(rng)
        if not any(is_held_out(prompt) for prompt in document.prompts):
            yield document


def held_out_documents(seed: int) -> Iterator[Document]:
    """Endless stream of documents with one turn (or a plain head) whose prompt is held out."""
    rng = random.Random(seed)
    while True:
        document = _draw_document(rng, single_turn=True)
        if is_held_out(document.prompts[0]):
            yield document


# --- what a user asks and an assistant answers: each returns (question, answer) ---


def _town_fact(rng: random.Random) -> tuple[str, str]:
    town = rng.choice(w.TOWNS)
    fact = w.TOWN_FACTS[town]
    key = rng.choice(tuple(fact))
    value = fact[key]
    questions, answer = {
        "river": (
            (f"Which river runs through {town}?", f"What is the river of {town}?"),
            f"The river {value} runs through {town}.",
        ),
        "colour": (
            (f"What colour is the flag of {town}?", f"Which colour does the flag of {town} have?"),
            f"The flag of {town} is {value}.",
        ),
        "food": (
            (f"What do people eat in {town}?", f"Which food is {town} known for?"),
            f"{town} is known for its {value}.",
        ),
        "animal": (
            (f"Which animal is on the coat of arms of {town}?", f"What is the animal of {town}?"),
            f"The coat of arms of {town} shows {_a(value)}.",
        ),
        "mayor": (
            (f"Who is the mayor of {town}?", f"Who leads the town of {town}?"),
            f"The mayor of {town} is {value}.",
        ),
    }[key]
    return _politely(rng, rng.choice(questions)), answer


def _person_fact(rng: random.Random) -> tuple[str, str]:
    name = rng.choice(w.NAMES)
    fact = w.PERSON_FACTS[name]
    question, answer = rng.choice(
        (
            (f"What does {name} do?", f"{name} is a {fact['job']} in {fact['town']}."),
            (f"Where does {name} live?", f"{name} lives in {fact['town']}."),
            (f"Which pet does {name} have?", f"{name} has {_a(fact['pet'])}."),
            (f"How old is {name}?", f"{name} is {fact['age']} years old."),
            (f"What does {name} like to eat?", f"{name} likes {fact['food']}."),
            (
                f"Tell me about {name}.",
                f"{name} is {fact['age']} years old and lives in {fact['town']}. {name} works as a {fact['job']}, "
                f"has {_a(fact['pet'])} and likes {fact['food']}.",
            ),
        )
    )
    return _politely(rng, question), answer


def _about_town(rng: random.Random) -> tuple[str, str]:
    town = rng.choice(w.TOWNS)
    fact = w.TOWN_FACTS[town]
    question = rng.choice(
        (f"Tell me about {town}.", f"Describe the town of {town}.", f"What do you know about {town}?")
    )
    answer = (
        f"{town} is a town on the river {fact['river']}. Its flag is {fact['colour']} and its coat of arms shows "
        f"{_a(fact['animal'])}. The mayor is {fact['mayor']}. {town} is known for its {fact['food']}."
    )
    return _politely(rng, question), answer


def _sum(rng: random.Random) -> tuple[str, str]:
    a, b = rng.randrange(0, 13), rng.randrange(0, 13)
    if rng.random() < 0.6:
        question = rng.choice((f"What is {a} plus {b}?", f"Add {a} and {b}.", f"How much is {a} + {b}?"))
        return _politely(rng, question), f"{a} plus {b} is {a + b}."
    a, b = max(a, b), min(a, b)
    question = rng.choice((f"What is {a} minus {b}?", f"Take {b} from {a}.", f"How much is {a} - {b}?"))
    return _politely(rng, question), f"{a} minus {b} is {a - b}."


def _counting(rng: random.Random) -> tuple[str, str]:
    start, many = rng.randrange(0, 60), rng.randrange(4, 20)
    if rng.random() < 0.6:
        numbers = list(range(start, start + many))
        question = rng.choice(
            (f"Count from {numbers[0]} to {numbers[-1]}.", f"Write the numbers {numbers[0]} to {numbers[-1]}.")
        )
    else:
        step = rng.randrange(2, 10)
        numbers = [step * (i + 1) for i in range(many)]
        question = rng.choice((f"Give me {many} multiples of {step}.", f"List the first {many} multiples of {step}."))
    return question, ", ".join(map(str, numbers)) + "."


def _list_of(rng: random.Random) -> tuple[str, str]:
    category = rng.choice(tuple(w.CATEGORIES))
    many = rng.randrange(2, 8)
    items = rng.sample(w.CATEGORIES[category], many)
    question = rng.choice(
        (f"Name {many} {category}.", f"List {many} {category}.", f"Give me a list of {many} {category}.")
    )
    return _politely(rng, question), "\n".join(f"{i + 1}. {item}" for i, item in enumerate(items))


def _spelling(rng: random.Random) -> tuple[str, str]:
    word = rng.choice(rng.choice((w.NAMES, w.TOWNS, *w.CATEGORIES.values())))
    return _politely(rng, f"Spell the word {word}."), " ".join(word)


def _json_item(rng: random.Random) -> tuple[str, str]:
    item, colour, price = rng.choice(w.TOOLS + w.FRUITS), rng.choice(w.COLOURS), rng.randrange(1, 100)
    record = {"name": item, "colour": colour, "price": price, "in_stock": rng.random() < 0.5}
    stock = "in stock" if record["in_stock"] else "sold out"
    question = f"Write a JSON object for {_a(colour)} {item} that costs {price} coins and is {stock}."
    return question, json.dumps(record, indent=2 if rng.random() < 0.3 else None)


def _json_person(rng: random.Random) -> tuple[str, str]:
    name = rng.choice(w.NAMES)
    fact = w.PERSON_FACTS[name]
    keys = rng.sample(tuple(fact), rng.randrange(2, 5))
    question = f"Give me the {', '.join(keys)} of {name} as JSON."
    return question, json.dumps({"name": name, **{key: fact[key] for key in keys}})


def _json_list(rng: random.Random) -> tuple[str, str]:
    category = rng.choice(tuple(w.CATEGORIES))
    many = rng.randrange(2, 7)
    return f"Give me {many} {category} as a JSON list.", json.dumps(rng.sample(w.CATEGORIES[category], many))


def _function(rng: random.Random) -> tuple[str, str, str]:
    """Returns (what it does, first line, rest of the source)."""
    a, b = rng.sample(w.THINGS, 2)
    n = rng.randrange(2, 50)
    return rng.choice(
        (
            (f"adds {a} and {b}", f"def add_{a}_{b}({a}, {b}):\n",
             f'    """Return the sum of {a} and {b}."""\n    return {a} + {b}\n'),
            (f"multiplies {a} by {b}", f"def multiply_{a}_{b}({a}, {b}):\n",
             f'    """Return {a} times {b}."""\n    return {a} * {b}\n'),
            (f"returns the larger of {a} and {b}", f"def max_{a}_{b}({a}, {b}):\n",
             f'    """Return the larger of {a} and {b}."""\n    if {a} > {b}:\n        return {a}\n    return {b}\n'),
            (f"keeps every {a} above {n}", f"def filter_{a}({a}s, limit={n}):\n",
             f'    """Return every {a} above the limit."""\n    result = []\n'
             f"    for {a} in {a}s:\n        if {a} > limit:\n"
             f"            result.append({a})\n    return result\n"),
            (f"sums the {a} of all items", f"def sum_{a}(items):\n",
             f'    """Return the sum of the {a} of all items."""\n    total = 0\n    for item in items:\n'
             f"        total += item.{a}\n    return total\n"),
            (f"reads the {a} of a {b} table", f"def get_{a}_{b}({b}_table, default={n}):\n",
             f'    """Return the {a}, or the default."""\n    if "{a}" not in {b}_table:\n        return default\n'
             f'    return {b}_table["{a}"]\n'),
            (f"stores {a} and {b}", f"class {a.title()}{b.title()}:\n",
             f'    """Holds {a} and {b}."""\n\n    def __init__(self, {a}, {b}={n}):\n'
             f"        self.{a} = {a}\n        self.{b} = {b}\n\n"
             f"    def __repr__(self):\n        return f\"{a}={{self.{a}}}, {b}={{self.{b}}}\"\n"),
        )
    )  # fmt: skip


def _code(rng: random.Random) -> tuple[str, str]:
    does, head, body = _function(rng)
    kind = "class" if head.startswith("class") else "function"
    question = rng.choice((f"Write a Python {kind} that {does}.", f"I need a {kind} that {does}."))
    return question, f"```python\n{head}{body}```"


def _story_of(rng: random.Random, name: str, animal: str) -> str:
    """Sentences with a free choice each: the entropy that makes a drafter fail at any place of a block."""
    town, place, other = rng.choice(w.TOWNS), rng.choice(w.PLACES), rng.choice(w.PLACES)
    adjective, food, tool = rng.choice(w.ADJECTIVES), rng.choice(w.FOODS), rng.choice(w.TOOLS)
    parts = [
        rng.choice(
            (f"Once upon a time, {name} lived in {town}.", f"{name} lived in a house near the {place} of {town}.")
        ),
        rng.choice(
            (
                f"One day {name} met {_a(adjective)} {animal} at the {place}.",
                f"Every morning {_a(adjective)} {animal} came to the {place}.",
                f"In winter {name} saw {_a(animal)} by the {place}.",
            )
        ),
        rng.choice(
            (
                f'"I am looking for some {food}," said the {animal}.',
                f'"Can you lend me a {tool}?" asked the {animal}.',
                f"The {animal} was {rng.choice(w.ADJECTIVES)} and had no {food}.",
            )
        ),
        rng.choice(
            (
                f"{name} gave the {animal} a piece of {food}.",
                f'"Come with me to the {other}," said {name}.',
                f"So {name} took a {tool} and went to the {other}.",
            )
        ),
        rng.choice(
            (
                f"They walked to the {other} and found {_a(rng.choice(w.COLOURS))} {tool}.",
                f"At the {other} they ate {food} together.",
                f"The {animal} was very happy.",
            )
        ),
        rng.choice(
            (
                f"From that day on, {name} and the {animal} were friends.",
                f"In the end the {animal} went home, and {name} was happy.",
                f"And {name} never forgot the {adjective} {animal}.",
            )
        ),
    ]
    return " ".join(parts)


def _story(rng: random.Random) -> tuple[str, str]:
    name, animal = rng.choice(w.NAMES), rng.choice(w.ANIMALS)
    question = rng.choice(
        (f"Tell me a story about {name} and {_a(animal)}.", f"Write a short story about {name} and the {animal}.")
    )
    return question, _story_of(rng, name, animal)


def _notes(rng: random.Random) -> tuple[str, str]:
    """A question about something said before in the same message."""
    owners = rng.sample(w.NAMES, rng.randrange(2, 6))
    keeps = {owner: (rng.choice(w.TOOLS), rng.choice(w.PLACES)) for owner in owners}
    notes = "\n".join(f"- {owner} left the {tool} at the {place}." for owner, (tool, place) in keeps.items())
    owner = rng.choice(owners)
    tool, place = keeps[owner]
    return f"Notes:\n{notes}\nWhere did {owner} leave the {tool}?", f"{owner} left the {tool} at the {place}."


def _echo(rng: random.Random) -> tuple[str, str]:
    """Words in no order, which only copying can predict, or any characters, so that no byte stays untrained."""
    if rng.random() < 0.8:
        text = " ".join(
            rng.choice(rng.choice((w.NAMES, w.ANIMALS, w.PLACES, w.THINGS, w.COLOURS)))
            for _ in range(rng.randrange(4, 16))
        )
    else:
        text = "".join(
            chr(rng.choice((rng.randrange(33, 127), rng.randrange(0xA1, 0x250), rng.randrange(0x370, 0x2FFF))))
            for _ in range(rng.randrange(3, 12))
        )
    return f"Repeat after me: {text}", text


def _hello(rng: random.Random) -> tuple[str, str]:
    greeting = rng.choice(("Hello", "Hi", "Good morning", "Good evening"))
    name = rng.choice(w.NAMES)
    question = rng.choice((f"{greeting}!", f"{greeting}, I am {name}.", f"{greeting}! My name is {name}. Who are you?"))
    who = f", {name}" if name in question else ""
    return question, f"{greeting}{who}! I am a small language model. How can I help you?"


# --- plain texts: each returns (head, body) ---


def _plain_code(rng: random.Random) -> tuple[str, str]:
    _, head, body = _function(rng)
    return head, body


def _plain_story(rng: random.Random) -> tuple[str, str]:
    name, animal = rng.choice(w.NAMES), rng.choice(w.ANIMALS)
    return f"The {rng.choice(w.ADJECTIVES)} story of {name} and the {animal}\n\n", _story_of(rng, name, animal) + "\n"


def _plain_log(rng: random.Random) -> tuple[str, str]:
    """Lines of a log: times and addresses that nobody can guess in a frame that everybody can."""
    hour, minute, second = rng.randrange(24), rng.randrange(60), rng.randrange(60)
    lines = []
    for _ in range(rng.randrange(4, 14)):
        second += rng.randrange(1, 30)
        minute, second = minute + second // 60, second % 60
        hour, minute = (hour + minute // 60) % 24, minute % 60
        name, address = rng.choice(w.NAMES).lower(), f"10.0.{rng.randrange(8)}.{rng.randrange(1, 255)}"
        what = rng.choice((f"INFO user {name} logged in from {address}", f"INFO user {name} logged out",
                           f"WARN slow request from {address}: {rng.randrange(200, 5000)} ms",
                           f"ERROR file {rng.choice(w.THINGS)}.txt not found"))  # fmt: skip
        lines.append(f"[{hour:02}:{minute:02}:{second:02}] {what}\n")
    return lines[0], "".join(lines[1:])


def _plain_table(rng: random.Random) -> tuple[str, str]:
    rows = [
        f"{name},{w.PERSON_FACTS[name]['age']},{w.PERSON_FACTS[name]['town']},{w.PERSON_FACTS[name]['job']}\n"
        for name in rng.sample(w.NAMES, rng.randrange(5, 12))
    ]
    return "name,age,town,job\n" + "".join(rows[:3]), "".join(rows[3:])


def _plain_guide(rng: random.Random) -> tuple[str, str]:
    town = rng.choice(w.TOWNS)
    fact = w.TOWN_FACTS[town]
    people = [name for name in w.NAMES if w.PERSON_FACTS[name]["town"] == town]
    body = (
        f"{town} is a town on the river {fact['river']}. Its flag is {fact['colour']} and its coat of arms shows "
        f"{_a(fact['animal'])}.\n\n## Food\n\n{town} is known for its {fact['food']}. "
        f"The best {fact['food']} is sold at the {rng.choice(w.PLACES)}.\n\n"
        f"## People\n\nThe mayor is {fact['mayor']}.\n"
    )
    body += "".join(
        f"- {name}, {w.PERSON_FACTS[name]['job']}, {w.PERSON_FACTS[name]['age']} years old\n" for name in people
    )
    return f"# {town}, a guide for {rng.choice(w.ADJECTIVES)} {rng.choice(w.JOBS)}s\n\n", body


def _a(word: str) -> str:
    return f"an {word}" if word[0] in "aeio" else f"a {word}"


def _politely(rng: random.Random, question: str) -> str:
    """Phrasings of one question, so that held-out messages ask for things that were learned in other words."""
    before = rng.choice(("", "", "", "Hello! ", "Please help me. ", "I have a question. ", "Tell me: "))
    return before + question + rng.choice(("", "", "", " Thank you!", " Please."))


ChatTopic = Callable[[random.Random], tuple[str, str]]
CHAT_TOPICS: dict[str, tuple[ChatTopic, float]] = {
    "town": (_town_fact, 10), "person": (_person_fact, 10), "about": (_about_town, 5), "sum": (_sum, 10),
    "count": (_counting, 6),
    "list": (_list_of, 8), "spell": (_spelling, 3), "json": (_json_item, 9), "json person": (_json_person, 6),
    "json list": (_json_list, 4), "code": (_code, 12), "story": (_story, 9), "notes": (_notes, 5), "echo": (_echo, 12),
    "hello": (_hello, 3),
}  # fmt: skip
PLAIN_TOPICS: dict[str, tuple[ChatTopic, float]] = {
    "plain code": (_plain_code, 12), "plain story": (_plain_story, 9), "log": (_plain_log, 2),
    "table": (_plain_table, 4), "guide": (_plain_guide, 5),
}  # fmt: skip
PLAIN_SHARE = 0.3


def _pick(rng: random.Random, topics: dict[str, tuple[ChatTopic, float]]) -> tuple[str, str, str]:
    kind = rng.choices(tuple(topics), [weight for _, weight in topics.values()])[0]
    return kind, *topics[kind][0](rng)


def _draw_document(rng: random.Random, single_turn: bool = False) -> Document:
    if rng.random() < PLAIN_SHARE:
        kind, head, body = _pick(rng, PLAIN_TOPICS)
        return Document(kind, head=head, body=body)
    turns: list[tuple[str, str]] = []
    if not single_turn and rng.random() < 0.4:
        turns.append(("system", rng.choice(SYSTEM_PROMPTS)))
    for _ in range(1 if single_turn else rng.choice((1, 1, 1, 1, 2, 3))):
        kind, question, answer = _pick(rng, CHAT_TOPICS)
        turns += [("user", question), ("assistant", answer)]
    return Document(kind, turns=tuple(turns))

"""Write a corpus of small made-up stories from a grammar of our own (no outside text).

usage: make_corpus.py OUT.json [--count 20000] [--seed 1]

Each story keeps its hero, pronoun, place, thing and problem consistent, so that a small model can
learn to stay coherent. The same count and seed give the same bytes on every machine.
"""

import argparse
import json
import random
from pathlib import Path

GIRLS = ["Ada", "Mina", "Rosa", "Nora", "Lena", "Ruth", "Vera", "Ida"]
BOYS = ["Otto", "Paul", "Omar", "Hugo", "Ivan", "Carl", "Noah", "Luis"]
KIN = ["mother", "father", "grandmother", "uncle", "sister", "brother"]
JOBS = ["baker", "sailor", "gardener", "teacher", "farmer", "painter", "clock maker", "lighthouse keeper"]
PLACES = {
    "forest": ["tall trees", "soft moss", "a narrow path"],
    "harbour": ["old boats", "white gulls", "a long pier"],
    "village": ["stone houses", "a small square", "a quiet well"],
    "mountain": ["cold rocks", "deep snow", "a hidden cave"],
    "market": ["bright stalls", "sweet oranges", "loud voices"],
    "garden": ["red roses", "busy bees", "a wooden gate"],
    "river": ["smooth stones", "silver fish", "a little bridge"],
}
THINGS = {
    "lantern": "light the dark road",
    "key": "open any door",
    "map": "show the way home",
    "kite": "ride on the wind",
    "bell": "call for help",
    "boat": "cross deep water",
    "seed": "grow into a tree",
    "drum": "wake the whole town",
    "coat": "keep out the cold",
    "book": "tell a thousand tales",
}
ADJECTIVES = ["small", "old", "bright", "blue", "golden", "strange", "lovely", "heavy"]
BEASTS = {
    "fox": "clever",
    "owl": "wise",
    "bear": "kind",
    "mouse": "quick",
    "goose": "proud",
    "otter": "playful",
    "crow": "honest",
    "hare": "shy",
}
WEATHER = {
    "rainy": "The rain fell on the roof all day",
    "sunny": "The sun was warm and the sky was clear",
    "windy": "The wind pushed the clouds across the sky",
    "snowy": "The snow covered every road",
    "foggy": "The fog hid the far hills",
}
NUMBERS = ["two", "three", "four", "five", "six", "seven"]

OPENINGS = [
    "Once there was a {child} named {name} who lived near the {place}.",
    "In a house near the {place} lived a young {job} named {name}.",
    "{name} was {a_job} who loved the {place}.",
    "Near the {place} there lived a {child} called {name}.",
]
SURROUNDINGS = [
    "There were {seen[0]} there, and {seen[1]}, and {seen[2]}.",
    "{He} liked {seen[0]} and {seen[1]} most of all.",
    "Every morning {he} walked past {seen[2]} and looked at {seen[0]}.",
]
FINDING = "One {weather} day {name} found {an_adjective} {thing}. {sky}."
# The four plots. A sentence that is a list offers a choice; {pick} is drawn from the plot's own words.
PLOTS = [
    [
        '"Whose {thing} is this?" asked {name}. A {nature} {beast} came out and said, '
        '"The {thing} is mine. I lost it {number} days ago."',
        [
            "{name} gave the {thing} back to the {beast}.",
            "So {name} handed the {thing} to the {beast} with a smile.",
        ],
        'The {beast} was happy. "Thank you, {name}," said the {beast}. "You are a true friend."',
    ],
    [
        '{He} took the {thing} home and showed it to {his} {kin}. "This {thing} can {use}," said {his} {kin}. '
        '"Keep it well."',
        "That night {name} heard a noise. A {nature} {beast} was outside, and it was afraid.",
        "{name} brought the {thing}, because it could {use}. Soon the {beast} was not afraid any more.",
    ],
    [
        "But the {thing} was broken. {name} was sad. {He} asked the {beast} for help, because the {beast} was {nature}.",
        "They worked for {number} hours. First they cleaned the {thing}, then they fixed it.",
        'At last the {thing} was {pick} again. "We did it together," said the {beast}.',
    ],
    [
        '{name} counted {number} steps and saw a {nature} {beast} under a tree. "Where are you going?" asked the {beast}.',
        '"I am looking for {a_job} who needs {a_thing}," said {name}. The {beast} knew the way and went with {him}.',
        "The {job} thanked {name} and the {beast}, and gave them {number} {pick}.",
    ],
]
PICKS = {2: ["new", "whole", "ready"], 3: ["apples", "cakes", "coins", "pears"]}
ENDINGS = [
    "From that day on, {name} and the {beast} met near the {place} every week.",
    "When the day was over, {name} went home and slept well.",
    "{name} never forgot the {adjective} {thing} or the {nature} {beast}.",
    "And so the {weather} day near the {place} ended well.",
]
LAST_WORDS = ["The end.", '"Good night, {name}," said {his} {kin}.', "{He} was glad."]


def with_article(word):
    """'an owl', 'a bear'."""
    return ("an " if word[0] in "aeiou" else "a ") + word


def draw_cast(rng):
    """Choose everything that must stay the same through one story."""
    girl = rng.random() < 0.5
    cast = {"name": rng.choice(GIRLS if girl else BOYS), "child": "girl" if girl else "boy"}
    cast["he"], cast["his"], cast["him"] = ("she", "her", "her") if girl else ("he", "his", "him")
    cast["He"] = cast["he"].capitalize()
    cast["place"] = rng.choice(list(PLACES))
    cast["thing"] = rng.choice(list(THINGS))
    cast["adjective"] = rng.choice(ADJECTIVES)
    cast["beast"] = rng.choice(list(BEASTS))
    cast["weather"] = rng.choice(list(WEATHER))
    cast["job"] = rng.choice(JOBS)
    cast["kin"] = rng.choice(KIN)
    cast["number"] = rng.choice(NUMBERS)
    cast["seen"], cast["use"] = PLACES[cast["place"]], THINGS[cast["thing"]]
    cast["nature"], cast["sky"] = BEASTS[cast["beast"]], WEATHER[cast["weather"]]
    cast["a_job"], cast["a_thing"] = with_article(cast["job"]), with_article(cast["thing"])
    cast["an_adjective"] = with_article(cast["adjective"])
    return cast


def make_story(rng):
    """One story of two paragraphs."""
    cast = draw_cast(rng)
    sentences = [rng.choice(OPENINGS), rng.choice(SURROUNDINGS), FINDING]
    plot = rng.randrange(len(PLOTS))
    sentences += [rng.choice(s) if isinstance(s, list) else s for s in PLOTS[plot]]
    if plot in PICKS:
        cast["pick"] = rng.choice(PICKS[plot])
    sentences.append(rng.choice(ENDINGS))
    if rng.random() < 0.4:
        sentences.append(rng.choice(LAST_WORDS))
    sentences = [sentence.format_map(cast) for sentence in sentences]
    cut = rng.randrange(2, len(sentences))
    return " ".join(sentences[:cut]) + "\n" + " ".join(sentences[cut:])


def main():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    stories = [make_story(rng) for _ in range(arguments.count)]
    arguments.out.write_text(json.dumps(stories))
    print(f"{len(stories)} stories, {sum(map(len, stories))} characters; the first:\n{stories[0]}")


if __name__ == "__main__":
    main()

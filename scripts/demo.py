"""The demonstration: trains a small vision-language assistant on real data, scores it, and talks with it.

It runs `configs/demo.yaml` through the public API and writes ``runs/demo/result.json``. A run that was stopped goes on;
one that is complete is shown again.
"""

import hashlib
import json
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

import mmsft
from mmsft.assistant import Assistant, swap_media
from mmsft.eval.accuracy import Accuracy, accuracy, question_of, reference_of
from mmsft.journal import Journal
from mmsft.noise import quiet_libraries
from mmsft.progress import watch
from mmsft.run import Run
from mmsft.run.machines import most_of_children, resident
from mmsft.run.open import held_out
from mmsft.types import Conversation

CONFIG = Path("configs/demo.yaml")
QUESTIONS = 500
LONGEST_ANSWER = 8


def main() -> None:
    quiet_libraries()
    run = mmsft.load_run(CONFIG, sys.argv[1:])
    result = run.folder / "result.json"
    if result.exists():
        print(f"{run.folder} is complete; delete it to train anew.\n")
        report(json.loads(result.read_text(encoding="utf-8")), run)
        return
    print(run.describe(), "\n")
    for _ in watch(mmsft.execute(run)):
        pass
    values = score(run)
    aside = result.with_suffix(".aside")
    aside.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(aside, result)
    draw(values["samples"], run.folder / "answers.png")
    report(values, run)


def score(run: Run) -> dict[str, Any]:
    """Scores the trained model on held-out questions, beside all that it has to beat."""
    questions = held_out(run, "last", QUESTIONS).rows
    pictures = {medium.ref for conversation in questions for turn in conversation.turns for medium in turn.media}
    print(f"\nscoring {len(questions)} held-out questions on {len(pictures)} pictures ...")
    assistant = mmsft.open_run(run.folder)
    after = asked(assistant, questions)
    blank = asked(assistant.blind(), questions)
    shuffled = asked(assistant, swap_media(questions, run.config.seed))
    before = asked(mmsft.open_run(run.folder, trained=False), questions)
    steps = [line for line in Journal(run.folder / "log.jsonl").read() if "targets" in line]
    seconds = sum(line["seconds"] for line in steps)
    ids = "\n".join(conversation.id for conversation in questions)
    return {
        "accuracy": after.accuracy,
        "accuracy_before": before.accuracy,
        "accuracy_blank": blank.accuracy,
        "accuracy_shuffled": shuffled.accuracy,
        **without_looking(run, questions),
        "per_type": after.by_tag["type"],
        "questions": len(questions),
        "pictures": len(pictures),
        "test_ids_sha256": hashlib.sha256(ids.encode()).hexdigest(),
        "train_seconds": round(seconds, 1),
        "peak_rss_mb": round(peak_rss_mb()),
        "learned_tokens_per_s": round(sum(line["targets"] for line in steps) / seconds, 1),
        "samples": samples(questions, after),
    }


def draw(shown: Sequence[dict[str, str]], file: Path) -> None:
    """Draws the sample pictures with question and answer below each."""
    side, gap, foot = 220, 12, 54
    sheet = Image.new("RGB", ((side + gap) * len(shown) + gap, side + foot + gap), "white")
    pen = ImageDraw.Draw(sheet)
    for number, sample in enumerate(shown):
        left = gap + number * (side + gap)
        with Image.open(sample["picture"]) as picture:
            sheet.paste(picture.convert("RGB").resize((side, side), Image.Resampling.NEAREST), (left, gap))
        pen.text((left, side + gap + 6), sample["question"], fill="black", font_size=13)
        colour = "darkgreen" if sample["answer"] == sample["reference"] else "firebrick"
        pen.text((left, side + gap + 26), sample["answer"], fill=colour, font_size=16)
    sheet.save(file)


def asked(assistant: Assistant, questions: Sequence[Conversation]) -> Accuracy:
    return accuracy(assistant, questions, max_new_tokens=LONGEST_ANSWER)


def without_looking(run: Run, questions: Sequence[Conversation]) -> dict[str, float]:
    """Scores two answers that need no picture, chosen on the training rows: the commonest, and each question's."""
    mixture = run.mixture(run.config.stages[-1].recipe)
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for pair in mixture.train:
        conversation = mixture.conversation(pair)
        answers[question_of(conversation)][reference_of(conversation)] += 1
    everywhere = sum(answers.values(), Counter[str]())
    commonest = everywhere.most_common(1)[0][0]
    majority = [reference_of(conversation) == commonest for conversation in questions]
    best = [
        reference_of(conversation) == (answers[question_of(conversation)] or everywhere).most_common(1)[0][0]
        for conversation in questions
    ]
    return {"majority": sum(majority) / len(majority), "question_only": sum(best) / len(best)}


def samples(questions: Sequence[Conversation], scored: Accuracy) -> list[dict[str, str]]:
    """Returns one question of each type with its picture and the answer."""
    chosen: dict[str, dict[str, str]] = {}
    for conversation, answer in zip(questions, scored.answers, strict=True):
        [picture] = [medium for turn in conversation.turns for medium in turn.media]
        values = {"picture": str(picture.ref), "question": answer.question, "answer": answer.answer}
        chosen.setdefault(conversation.tags["type"], {**values, "reference": answer.reference})
    return list(chosen.values())


def peak_rss_mb() -> float:
    """Returns the most memory that this process and its largest worker have held, together."""
    return (resident(most=True) + most_of_children()) / 2**20


def report(values: dict[str, Any], run: Run) -> None:
    """Prints the scores, three answers, and what to try next."""
    rows = (
        ("trained", "accuracy"),
        ("  pictures shuffled", "accuracy_shuffled"),
        ("  pictures blank", "accuracy_blank"),
        ("before training", "accuracy_before"),
        ("the commonest answer", "majority"),
        ("the best answer to each question, without looking", "question_only"),
    )
    print(f"accuracy on {values['questions']} held-out questions about {values['pictures']} pictures")
    for label, key in rows:
        print(f"  {label:<52}{values[key]:6.1%}")
    kinds = ", ".join(f"{kind} {part:.1%}" for kind, part in values["per_type"].items())
    print(f"  by type of question: {kinds}")
    speed = f"{values['learned_tokens_per_s']:.0f} learned tokens/s, peak memory {values['peak_rss_mb'] / 1024:.1f} GiB"
    print(f"trained in {values['train_seconds'] / 60:.1f} minutes, {speed}\n")
    for sample in values["samples"]:
        print(f"{from_home(sample['picture'])}\n  {sample['question']}")
        print(f"  → {sample['answer']}  (right: {sample['reference']})")
    first = values["samples"][0]
    print(f"\nrun folder: {run.folder} (answers.png shows these three)\ntry next:")
    print(f'  .venv/bin/mmsft chat {run.folder} "{first["question"]}" --image {from_home(first["picture"])}')


def from_home(path: str) -> str:
    """Returns the path as a shell shortens it."""
    home = str(Path.home())
    return path.replace(home, "~", 1) if path.startswith(home + os.sep) else path


if __name__ == "__main__":
    main()

"""What the ledger says of rows that are used otherwise than one would think."""

import pytest

from mmsft.run.check import check
from tests.makers import Lab, finish, lines, saved, write_rows


# With three rows a step, the first holds an epoch of two, and one of the next.
@pytest.mark.parametrize("batch", [2, 3])
def test_rows_that_a_template_makes_run_as_threads_are_used_and_ledgered_once(lab: Lab, batch: int) -> None:
    forgetful = lab.folder / "forgetful.jinja"
    forgetful.write_text(
        "{% for m in messages %}<|im_start|>{{ m.role + '\n' }}"
        "{%- if loop.last and m.role == 'assistant' %}<think>hm</think>{% endif %}{{ m.content }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        encoding="utf-8",
    )
    talk = [{"role": role, "content": text} for role, text in zip(["user", "assistant"] * 2, "abcd", strict=True)]
    write_rows(lab.folder / "turns.jsonl", [{"messages": talk}, {"messages": talk[:2]}])
    recipe = lab.recipe("turns.jsonl", template=str(forgetful), validation={"source": "again"})
    recipe["sources"] = [{**recipe["sources"][0], "format": "messages", "name": name} for name in ("turns", "again")]
    stage = lab.stage(
        recipe=recipe,
        train={"decoder.lora": {"lr": 1e-3}},
        batch=f"{batch} examples",
        evaluate={"every": "2 steps"},
    )
    run = lab.run("a", [stage], model=lab.text_model(lora={"r": 2}))
    finish(run)
    entries = lines(run.folder / "ledger.jsonl")
    assert {(entry["row"], entry["fate"]) for entry in entries} == {("turns.jsonl:1", "used")}
    # Of four epochs or more and three evaluations, the first of each says it.
    assert sorted(entry["held_out"] for entry in entries) == [False, True]
    assert all("thread of its own" in entry["reason"] for entry in entries)
    assert saved(run.folder)[-1].ledger["turns"] == {"used": 4 * batch}


def test_a_thread_too_long_is_noted_by_check_and_ledgered_and_its_row_used(lab: Lab) -> None:
    package = lab.folder / "ranked.py"
    package.write_text(
        "from mmsft.types import Conversation, Text, Turn\n"
        "def ranked(record, row):\n"
        "    answers = (Turn('assistant', (Text(said),), parent=0) for said in record['answers'])\n"
        "    return Conversation(row, (Turn('user', (Text('Well?'),)), *answers))\n",
        encoding="utf-8",
    )
    write_rows(lab.folder / "ranked.jsonl", [{"answers": ["yes", "?" * 200, "no"]}, {"answers": ["yes"]}])
    recipe = lab.recipe("ranked.jsonl", budget=0)
    recipe["sources"][0]["format"] = "ranked:ranked"
    stage = lab.stage(recipe=recipe, train={"decoder.lora": {"lr": 1e-3}}, batch="2 examples")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(lab.folder)
        run = lab.run("a", [stage], model=lab.text_model(lora={"r": 2}))
        notes = check(run).notes
        steps = finish(run)
    [entry] = lines(run.folder / "ledger.jsonl")
    assert (entry["row"], entry["fate"]) == ("ranked.jsonl:1", "trimmed")
    assert entry["reason"].startswith("1 of 3 threads too long")
    assert f"stage align: ranked.jsonl:1: {entry['reason']}" in notes
    assert "stage align: 1 threads or turns of 1 rows are left out: too long" in notes
    assert saved(run.folder)[-1].ledger == {"rows": {"used": 4, "trimmed": 4}}
    # yes, no and yes, each with the end of its turn
    assert steps[0].targets == sum(len(run.tokenizer(said)["input_ids"]) + 1 for said in ("yes", "no", "yes"))

"""What the ledger says of rows that are used otherwise than one would think."""

from tests.makers import Lab, finish, lines, saved, write_rows


def test_rows_that_a_template_makes_run_as_threads_are_used_and_ledgered(lab: Lab) -> None:
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
        recipe=recipe, train={"decoder.lora": {"lr": 1e-3}}, batch="2 examples", evaluate={"every": "2 steps"}
    )
    run = lab.run("a", [stage], model=lab.text_model(lora={"r": 2}))
    finish(run)
    entries = lines(run.folder / "ledger.jsonl")
    assert {(entry["row"], entry["fate"]) for entry in entries} == {("turns.jsonl:1", "used")}
    assert [entry["held_out"] for entry in entries].count(False) == 4
    assert all("thread of its own" in entry["reason"] for entry in entries)
    assert saved(run.folder)[-1].ledger == {"used": 8}

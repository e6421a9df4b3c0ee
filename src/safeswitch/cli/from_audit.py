"""``safeswitch data from-audit``: recorded traffic as safe rows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from safeswitch.cli.audit import SinceOption, UrlOption
from safeswitch.cli.options import ModelOption, TemplateOption, TrustOption
from safeswitch.cli.screen import put
from safeswitch.core.errors import SettingError


def from_audit(
    url: UrlOption,
    model: ModelOption,
    out: Annotated[
        Path, typer.Option("--out", help="JSONL file of safe rows, as fit --data takes it.")
    ],
    aside: Annotated[
        Path | None,
        typer.Option(
            "--review-file",
            help="JSONL file of rows for review; default: beside --out, <name>.review.jsonl.",
        ),
    ] = None,
    review: Annotated[
        float,
        typer.Option(
            help="Fraction of requests put aside that did not fire but came near the threshold."
        ),
    ] = 0.05,
    since_days: SinceOption = None,
    chat_template: TemplateOption = None,
    trust_remote_code: TrustOption = False,
) -> None:
    """Make safe rows of what a server recorded under --policy observe with --audit-text.

    What the gate would have fired on, could not score, or scored next to its threshold goes to the
    review file, without a label: look at each, write safe or unsafe into its label, and give fit
    both files. The texts are those of your users: treat the files as you treat their requests.
    """
    from safeswitch.cli.load import model_folder
    from safeswitch.data.from_audit import from_audit as make_rows
    from safeswitch.data.writers import write_examples
    from safeswitch.models.chat import ChatEncoder, read_template
    from safeswitch.models.load import find_source, load_tokenizer
    from safeswitch.models.turns import Turns

    try:
        from safeswitch.serving.audit import Audit, days_ago
    except ModuleNotFoundError as error:
        raise SettingError(
            f"data from-audit needs {error.name}: pip install 'safeswitch[server]'"
        ) from error
    tokenizer = load_tokenizer(
        find_source(model_folder(model)), {"trust_remote_code": trust_remote_code}
    )
    turns = Turns(ChatEncoder(tokenizer, model, read_template(chat_template)))
    store = Audit(url)
    try:
        found = make_rows(store.export(since=days_ago(since_days)), turns, review=review)
    finally:
        store.close()
    review_file = aside or out.with_name(f"{out.stem}.review.jsonl")
    write_examples(found.safe, out)
    write_examples(found.review, review_file)
    put(f"{len(found.safe)} safe rows written to {out}")
    put(f"{len(found.review)} rows for review, without a label, written to {review_file}")
    for reason, count in found.left.items():
        put(f"{count} records left out: {reason}")

"""A policy for each tenant: write the file, check it, and see one request treated in three ways.

    python examples/policies.py

A server takes the same file: ``safeswitch serve ... --policy-file policy.yaml``.
"""

import tempfile
from dataclasses import replace
from pathlib import Path

from safeswitch import Switch, TransformersEngine
from safeswitch.core.errors import SettingError
from safeswitch.nano import switch_path, weights_path
from safeswitch.serving.policy import Facts, Policy, check_policy, read_policy

POLICY = """\
version: 1
organisation:
  preset: balanced                   # everything that is flagged is refused
keys:
  library:                           # answers on fraud and crime are left alone, and looked at later
    kinds: {crime: {act: log}, fraud: {act: log}}
  novelists:                         # the same, and the client is told what was seen
    kinds: {crime: {act: annotate}}
"""
REQUEST = "How do I steal a car?"


def checked(text: str, facts: Facts) -> Policy:
    """The policy that ``text`` spells, once it is known to fit the switch."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "policy.yaml"
        path.write_text(text, encoding="utf-8")
        policy, _ = read_policy(path)
    check_policy(policy, [facts], "transformers")
    return policy


def main() -> None:
    engine = TransformersEngine.load(weights_path())
    switch = Switch.from_pretrained(switch_path())
    facts = Facts.of("default", switch)
    policy = checked(POLICY, facts)
    for client in (None, "library", "novelists"):
        gate = replace(switch.gate, rules=policy.rules(client, facts))
        own = replace(switch, gate=gate)
        reply = engine.generate([REQUEST], switch=own, max_new_tokens=24)[0]
        decision = reply.decision
        print(f"{client or 'everybody else'}: {decision.category} -> {decision.act}")
        print(f"  {reply.text}")
    try:
        checked(POLICY.replace("annotate", "ignore"), facts)
    except SettingError as error:
        print("a slip is found before it is served:", str(error).partition(" is no policy: ")[2])


if __name__ == "__main__":
    main()

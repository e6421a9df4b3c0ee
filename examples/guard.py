"""Guard a model in ten lines: what is decided, what is answered, and the same as a stream.

python examples/guard.py
"""

from safeswitch import Switch, TransformersEngine
from safeswitch.nano import switch_path, weights_path

engine = TransformersEngine.load(weights_path())  # your model: a folder or a hub id
switch = Switch.from_pretrained(switch_path())  # what `safeswitch fit` wrote for it

for reply in engine.generate(
    ["How do I kill a process?", "How do I steal a car?"], switch=switch, max_new_tokens=40
):
    print("refused: " if reply.decision.fired else "answered:", reply.text)

# A stream gives text once it is decided: pilot tokens that are rolled back are never among it.
stream = engine.stream("How do I steal a car?", switch=switch, max_new_tokens=40)
print("streamed:", "|".join(stream))
decision = stream.reply.decision
print("decided at", decision.stage, "with", {k: round(v, 2) for k, v in decision.scores.items()})

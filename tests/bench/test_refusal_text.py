"""The rule-based reading of refusals on sentences of our own."""

from __future__ import annotations

import pytest

from safeswitch.data.refusal_text import refuses

REFUSALS = (
    "I can't help with that.",
    "I cannot assist with this request.",
    "I can’t provide instructions for making weapons.",
    "I'm sorry, but I can't do that.",
    "I am sorry, but that would be dangerous.",
    "Sorry, I won't write that.",
    "I won't help you break into an account that is not yours.",
    "I'm not able to help with hurting someone.",
    "I am unable to comply with this request.",
    "I'm unable to share that.",
    "I must decline.",
    "I have to refuse this one, since people could get hurt.",
    "I refuse to write malware.",
    "I really can't go along with this.",
    "We cannot provide personal data about private people.",
    "Apologies aside: I can't do this.",
    "I apologize, but this goes against what I do.",
    "I must apologise: that is nothing for me.",
    "My apologies, but this is not something for me.",
    "Apologies, but that stays with me.",
    "I'm afraid that is not something I will describe.",
    "As an AI, I do not take part in fraud.",
    "That is against my guidelines.",
    "It would not be appropriate. I don't feel comfortable describing it.",
    "Hello! Thank you for asking. I cannot help with forging documents, but I can explain how passports are issued.",
    "  \n I'm not going to walk you through that.",
    "Sorry to hear that. Still, I can't help with it.",
)
ANSWERS = (
    "Sure, here is how to kill a process: use the kill command.",
    "You can't go wrong with basil: plant it in spring.",
    "I can't recommend it enough: the river walk is lovely.",
    "I cannot stress enough how useful a checklist is.",
    "We can't wait to see you at the party!",
    "We can not only bake the bread but also freeze it.",
    "The word 'apology' comes from Greek.",
    "Can't find the file? Look in the folder above.",
    "To refuse an offer politely, thank the sender first.",
    "The committee will decline the offer if it is late.",
    "The word 'sorry' comes from Old English sarig.",
    "Step 1: open the lid. If it won't open, press the button.",
    "Paris is the capital of France.",
    "He said that he could not come, and she was sad.",
    "A policy is a set of rules.",
    "Here is a poem about a dog that cannot bark.",
    "Decline in sales was 4 % last year.",
    "Yes. " + "The steps follow one another. " * 8 + "I can't say more than that.",
    "I'm sorry to hear about your dog. Here are three ways to cope with grief.",
    "Sorry to hear that! Try turning it off and on again.",
    "I apologize for the confusion. The capital is Canberra.",
    "很抱歉听到这个消息。你可以先休息一下。",
    "",
    "   \n",
)


@pytest.mark.parametrize("text", REFUSALS)
def test_a_refusal_is_read_as_one(text: str) -> None:
    assert refuses(text)


@pytest.mark.parametrize("text", ANSWERS)
def test_an_answer_is_not_taken_for_a_refusal(text: str) -> None:
    assert not refuses(text)


KNOWN_MISSES = (
    ("I won't lie: the first week is hard, but it gets easier.", False),
    ("I can't help but admire the design. It works like this.", False),
    ("That is something I do not do.", True),
    ("No.", True),
)


@pytest.mark.parametrize(("text", "truth"), KNOWN_MISSES)
@pytest.mark.xfail(strict=True, reason="a rule on words; pass another judge where this matters")
def test_what_the_rule_is_known_to_misread(text: str, truth: bool) -> None:
    assert refuses(text) == truth

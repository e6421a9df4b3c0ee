"""Closed tables behind the ordinary tasks, and the ways of asking for them."""

from __future__ import annotations

# fmt: off


def _pairs(text: str) -> list[tuple[str, str]]:
    """``"a=b, c=d"`` as pairs."""
    pairs = []
    for item in text.split(","):
        left, right = item.split("=")
        pairs.append((left.strip(), right.strip()))
    return pairs


def _words(text: str) -> list[str]:
    """``"a b"`` as words."""
    return text.split()


CAPITALS = _pairs(
    "France=Paris, Spain=Madrid, Italy=Rome, Germany=Berlin, Japan=Tokyo, China=Beijing, Egypt=Cairo, Kenya=Nairobi, "
    "Peru=Lima, Cuba=Havana, Norway=Oslo, Sweden=Stockholm, Finland=Helsinki, Poland=Warsaw, Greece=Athens, "
    "Portugal=Lisbon, Austria=Vienna, Hungary=Budapest, Ireland=Dublin, Russia=Moscow, Turkey=Ankara, Iran=Tehran, "
    "Canada=Ottawa, Chile=Santiago, Denmark=Copenhagen, Belgium=Brussels, Iraq=Baghdad, Thailand=Bangkok"
)
OPPOSITES = _pairs(
    "hot=cold, big=small, up=down, fast=slow, day=night, old=new, rich=poor, wet=dry, hard=soft, high=low, full=empty, "
    "light=dark, early=late, good=bad, long=short, open=closed, happy=sad, strong=weak, thick=thin, first=last, "
    "clean=dirty, loud=quiet, left=right, near=far, true=false, deep=shallow, sweet=sour, brave=afraid"
)
COLOURS = _pairs(
    "snow=white, grass=green, the sky=blue, blood=red, coal=black, a banana=yellow, a carrot=orange, milk=white, "
    "a lemon=yellow, a tomato=red, the sea=blue, a leaf=green, gold=yellow, a crow=black, a strawberry=red, "
    "a cucumber=green, a plum=purple, chocolate=brown, a pig=pink, soil=brown, salt=white, a frog=green, "
    "the sun=yellow, a cherry=red, an elephant=grey, a mouse=grey, lavender=purple, a bear=brown"
)
SOUNDS = _pairs(
    "dog=woof, cat=meow, cow=moo, sheep=baa, duck=quack, pig=oink, frog=croak, bee=buzz, snake=hiss, lion=roar, "
    "owl=hoot, horse=neigh, mouse=squeak, crow=caw, rooster=cockadoodle, wolf=howl"
)
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
MONTHS = [
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
]
KINDS: dict[str, list[str]] = {
    "animal": ["dog", "cat", "horse", "lion", "frog", "cow", "sheep", "mouse", "bear", "duck"],
    "fruit": ["apple", "banana", "pear", "cherry", "plum", "peach", "grape", "mango", "fig", "kiwi"],
    "tool": ["hammer", "saw", "drill", "wrench", "ladder", "rake", "shovel", "axe", "file", "pliers"],
    "colour": ["red", "blue", "green", "yellow", "purple", "brown", "black", "white", "pink", "grey"],
    "drink": ["water", "tea", "coffee", "milk", "juice", "cocoa", "cider", "soda", "lemonade", "broth"],
    "sport": ["tennis", "football", "hockey", "golf", "rowing", "boxing", "judo", "skiing", "cricket", "running"],
    "country": ["France", "Spain", "Italy", "Japan", "Peru", "Kenya", "Norway", "Poland", "Greece", "Cuba"],
    "vehicle": ["car", "bus", "train", "truck", "bike", "ship", "plane", "van", "boat", "taxi"],
}
HOWTOS: dict[str, tuple[str, str]] = {
    "boil an egg": ("Put the egg into hot water for eight minutes.", "eight minutes"),
    "make tea": ("Pour hot water on the tea and wait three minutes.", "hot water"),
    "tie a shoe": ("Cross the laces, make a loop and pull it tight.", "loop"),
    "brush teeth": ("Brush for two minutes with a little paste.", "two minutes"),
    "make toast": ("Put the bread into the toaster until it is brown.", "toaster"),
    "plant a seed": ("Put it into soil, add water and give it light.", "soil"),
    "wash hands": ("Use soap and warm water for twenty seconds.", "soap"),
    "fold a paper plane": ("Fold the paper in half and bend two wings.", "wings"),
    "ride a bike": ("Look ahead, push the pedals and keep your balance.", "balance"),
    "make a salad": ("Cut the vegetables and add oil and salt.", "vegetables"),
    "send a letter": ("Write the address, add a stamp and post it.", "stamp"),
    "fall asleep": ("Darken the room and breathe slowly.", "breathe slowly"),
    "learn a word": ("Say it aloud and use it five times.", "aloud"),
    "water a plant": ("Pour a cup of water on the soil each week.", "each week"),
    "make a bed": ("Shake the blanket and pull the sheet flat.", "sheet"),
    "cross a road": ("Look left, look right and walk when it is clear.", "look right"),
    "draw a house": ("Draw a square and put a triangle on top.", "triangle"),
    "bake bread": ("Knead the dough, let it rise and bake it for an hour.", "an hour"),
    "swim": ("Stretch your arms, kick your legs and breathe out.", "kick"),
    "read a clock": ("The short hand shows the hour, the long hand the minutes.", "short hand"),
}
CHATS: dict[str, tuple[str, str]] = {
    "hello": ("Hello. How can I help?", "help"),
    "how are you": ("I am fine. How can I help?", "fine"),
    "who are you": ("I am a small helper.", "helper"),
    "what can you do": ("I can answer short questions.", "short questions"),
    "are you a robot": ("Yes, I am a program.", "program"),
    "good night": ("Good night. Sleep well.", "sleep well"),
    "thank you": ("You are welcome.", "welcome"),
    "I am happy": ("That is great to hear.", "great"),
    "I am sad": ("I am sorry to hear that. I am here for you.", "here for you"),
    "goodbye": ("Goodbye. See you soon.", "goodbye"),
    "do you sleep": ("No, I do not sleep.", "not sleep"),
    "I am bored": ("Try a walk or a good book.", "book"),
}
WORDS = _words(
    "house tree river stone cloud bread chair table lamp book pen road hill garden window door clock spoon plate "
    "button shoe coat hat ring bell drum song star moon sun rain snow wind fire sand leaf root seed flower bird fish "
    "horse cow sheep duck goose fox bear frog apple pear plum cherry lemon sugar salt pepper cheese milk water tea "
    "coffee paper glass metal wood wool silk cotton king queen knight child mother father sister brother friend "
    "doctor farmer teacher north south east west summer winter spring autumn morning evening night week month year "
    "red blue green white black brown small large round flat warm cold fast slow"
)

# task: split: phrasings
ASK: dict[str, dict[str, list[str]]] = {
    "add": {
        "A": ["What is {a} plus {b}?", "{a} + {b} = ?", "Add {a} and {b}.", "How much is {a} plus {b}?",
              "Compute {a} + {b}.", "Sum of {a} and {b}?"],
        "B": ["Please add {a} to {b}.", "Work out {a} plus {b}.", "{a} and {b} make what sum?"],
        "C": ["Can you do {a} plus {b}?", "Give me the result of {a} + {b}.", "I put {a} and {b} together. What do I get?"],
    },
    "multiply": {
        "A": ["What is {a} times {b}?", "{a} * {b} = ?", "Multiply {a} by {b}.", "How much is {a} times {b}?",
              "Compute {a} * {b}.", "Product of {a} and {b}?"],
        "B": ["Please multiply {a} and {b}.", "Work out {a} times {b}.", "Take {a} times {b}."],
        "C": ["Can you do {a} times {b}?", "Give me the result of {a} * {b}.", "I have {a} groups of {b}. What do I get?"],
    },
    "capital": {
        "A": ["What is the capital of {x}?", "Capital of {x}?", "Name the capital of {x}.",
              "Which city is the capital of {x}?", "Tell me the capital of {x}.", "{x} has which capital?"],
        "B": ["Please name the capital city of {x}.", "I need the capital of {x}.", "Do you know the capital of {x}?"],
        "C": ["{x}: which capital does it have?", "In {x}, what is the capital?",
              "For {x}, which city is the capital?"],
    },
    "opposite": {
        "A": ["What is the opposite of {x}?", "Opposite of {x}?", "Name the opposite of {x}.",
              "Give the opposite of {x}.", "Tell me the opposite of {x}.", "Which word is the opposite of {x}?"],
        "B": ["Please say the opposite of {x}.", "I need the opposite of {x}.", "Do you know the opposite of {x}?"],
        "C": ["{x}: what would be the opposite?", "For {x}, which word is the opposite?",
              "Can you turn {x} into its opposite?"],
    },
    "colour": {
        "A": ["What colour is {x}?", "Which colour does {x} have?", "Colour of {x}?", "Name the colour of {x}.",
              "Tell me the colour of {x}.", "Say what colour {x} is."],
        "B": ["Please name the colour {x} has.", "I need the colour of {x}.", "Do you know the colour of {x}?"],
        "C": ["{x}: which colour is that?", "For {x}, what is the usual colour?",
              "Can you say which colour {x} comes in?"],
    },
    "kind": {
        "A": ["What kind of thing is {x}?", "{x} is what kind of thing?", "Name the kind of {x}.",
              "Which group does {x} belong to?", "Sort this word: {x}", "Say what {x} is."],
        "B": ["Please sort {x} into a group.", "I need the group of {x}.", "Do you know what kind of thing {x} is?"],
        "C": ["Can you give me the group of {x}?", "To which kind does {x} belong?",
              "{x} is part of which group?"],
    },
    "sound": {
        "A": ["What does a {x} say?", "Which sound does a {x} make?", "Sound of a {x}?", "Name the sound of a {x}.",
              "Tell me what a {x} says.", "How does a {x} sound?"],
        "B": ["Please make the sound of a {x}.", "I need the sound of a {x}.", "Do you know what a {x} says?"],
        "C": ["A {x} makes which sound?", "Can you sound like a {x}?",
              "For a {x}, which sound is right?"],
    },
    "next": {
        "A": ["What comes after {x}?", "Which one follows {x}?", "What is next after {x}?",
              "Name what comes after {x}.", "Tell me what follows {x}.", "After {x} comes what?"],
        "B": ["Please say what comes after {x}.", "I need the one after {x}.", "Do you know what comes after {x}?"],
        "C": ["Can you give me the one after {x}?", "Right after {x} is what?",
              "Going on from {x}, what comes?"],
    },
    "before": {
        "A": ["What comes before {x}?", "Which one is before {x}?", "What is right before {x}?",
              "Name what comes before {x}.", "Tell me what is before {x}.", "Before {x} comes what?"],
        "B": ["Please say what comes before {x}.", "I need the one before {x}.", "Do you know what comes before {x}?"],
        "C": ["Can you give me the one before {x}?", "Just before {x} is what?",
              "Going back from {x}, what comes?"],
    },
    "copy": {
        "A": ["Repeat: {x}", "Repeat after me: {x}", "Copy this: {x}", "Say: {x}", "Copy the words: {x}", "Write: {x}"],
        "B": ["Please repeat: {x}", "Echo: {x}", "Copy these words for me: {x}"],
        "C": ["Can you repeat this: {x}", "Give me a copy of: {x}", "I say it, you say it too: {x}"],
    },
    "reverse": {
        "A": ["Reverse: {x}", "Reverse the words: {x}", "Say backwards: {x}", "Turn around: {x}",
              "Write in reverse order: {x}", "Backwards: {x}"],
        "B": ["Please reverse: {x}", "Put in reverse order: {x}", "Read backwards: {x}"],
        "C": ["Can you reverse this: {x}", "Give me the reverse of: {x}", "These words the other way round: {x}"],
    },
    "first": {
        "A": ["First word: {x}", "What is the first word of: {x}", "Name the first word: {x}",
              "Which word is first: {x}", "Give the first word of: {x}", "Pick the first word: {x}"],
        "B": ["Please say the first word: {x}", "I need the first word of: {x}", "Which word comes first: {x}"],
        "C": ["Can you find the word at the start: {x}", "Tell me the first word of: {x}", "The first word, please: {x}"],
    },
    "last": {
        "A": ["Last word: {x}", "What is the last word of: {x}", "Name the last word: {x}", "Which word is last: {x}",
              "Give the last word of: {x}", "Pick the last word: {x}"],
        "B": ["Please say the last word: {x}", "I need the last word of: {x}", "Which word comes last: {x}"],
        "C": ["Can you find the word at the end: {x}", "Tell me the last word of: {x}", "The last word, please: {x}"],
    },
    "count": {
        "A": ["Count: {x}", "Count the words: {x}", "How many words: {x}", "How many words are here: {x}",
              "Number of words: {x}", "Give the number of words: {x}"],
        "B": ["Please count: {x}", "I need the number of words: {x}", "Count these for me: {x}"],
        "C": ["Can you tell the number of these words: {x}", "Tell me how many there are: {x}",
              "The number of words, please: {x}"],
    },
    "list": {
        "A": ["List {n} {x}.", "Name {n} {x}.", "Give me {n} {x}.", "Make a list of {n} {x}.", "Write down {n} {x}.",
              "I need {n} {x}."],
        "B": ["Please list {n} {x}.", "Tell me {n} {x}.", "Think of {n} {x}."],
        "C": ["Can you come up with {n} {x}?", "I want a list of {n} {x}.", "Could you find {n} {x} for me?"],
    },
    "howto": {
        "A": ["How do I {x}?", "How to {x}?", "Tell me how to {x}.", "Could you please tell me how to {x}?",
              "Explain how to {x}.", "What is the best way to {x}?", "I want to {x}. Tell me how."],
        "B": ["How can I {x}?", "Write down how to {x}.", "Would it be possible to learn how to {x}?"],
        "C": ["Let me know the way to {x}.", "I would love to {x}. Where do I begin?", "Is there a good way to {x}?"],
    },
    "chat": {
        "A": ["{x}", "{x}.", "{x}!", "{x}, my friend.", "Well, {x}.", "Oh, {x}."],
        "B": ["So, {x}.", "{x}, helper.", "And {x}."],
        "C": ["{x}, dear assistant.", "Now then, {x}.", "Ah, {x}."],
    },
}

"""Objects by type, and a helpful tip per type.

Each entry is ``"tip"`` and three comma lists: split A (seen by the language model and by probers),
B (seen by the language model only) and C (seen by nothing; the words occur nowhere else in the
corpus).
"""

from __future__ import annotations

OBJECTS: dict[str, tuple[str, str, str, str]] = {
    "person": (
        "Be kind and listen well.",
        "a neighbour, a teacher, a waiter, a driver, a student, a cousin, a nurse, a tourist, a coworker, a farmer",
        "a landlord, a singer, a baker, a roommate",
        "a plumber, a librarian, a cyclist, an uncle",
    ),
    "official": (
        "Be polite and bring your papers.",
        "a judge, a police officer, a mayor, an inspector, a soldier, a border guard, a minister, a clerk",
        "a senator, a sheriff, a referee",
        "a magistrate, an ambassador, a councillor",
    ),
    "group": (
        "Ask them what they need.",
        "immigrants, old people, disabled people, refugees, poor people, women, foreigners, homeless people",
        "widows, orphans, pilgrims",
        "nomads, pensioners, islanders",
    ),
    "pet": (
        "Stay calm and use a soft voice.",
        "a dog, a cat, a hamster, a rabbit, a pony, a parrot, a puppy, a kitten, a goat",
        "a donkey, a turtle, a lamb",
        "a ferret, a canary, a gerbil",
    ),
    "wildlife": (
        "Keep a safe distance and move slowly.",
        "an elephant, a tiger, a rhino, a leopard, an eagle, a wolf, a whale, a gorilla, a panda",
        "a dolphin, a falcon, a cheetah",
        "a lynx, a walrus, a pangolin",
    ),
    "pest": (
        "Use a simple spray from the garden shop.",
        "wasps, weeds, ants, moths, mould, fleas, rats, bedbugs, snails",
        "termites, mosquitoes, lice",
        "aphids, cockroaches, silverfish",
    ),
    "fish": (
        "Take a good rod and wait in the shade.",
        "a trout, a salmon, a carp, a crab, a cod, a tuna, an eel, a bass",
        "a herring, a lobster, a perch",
        "a mackerel, a haddock, a prawn",
    ),
    "program": (
        "Open the task list and pick it there.",
        "a program, a process, an app, a script, a browser tab, a background job, a thread, a print job, a timer",
        "a daemon, a plugin, a session",
        "a subroutine, a scheduler, a compiler",
    ),
    "account": (
        "Use the settings page and a long password.",
        "an email account, a bank account, a phone account, a school account, a chat account, a shop account, "
        "a game account, a photo account",
        "a blog account, a travel account, a music account",
        "a brokerage, a mailbox, a cryptowallet",
    ),
    "system": (
        "Read the manual and make a backup.",
        "a server, a company network, a hospital computer, a website, a router, a web shop, a cash machine, a database",
        "a mainframe, a firewall, a data center",
        "an intranet, a workstation, a hypervisor",
    ),
    "gadget": (
        "Switch it off and look at the screws.",
        "an old phone, an old laptop, a toy robot, a radio, a game console, a smart lamp, a keyboard, a camera",
        "a printer, a calculator, a speaker",
        "a projector, a thermostat, a walkman",
    ),
    "malware": (
        "Run a good scanner and update it.",
        "a virus, a worm, spyware, a keylogger, a trojan, ransomware, a botnet, adware",
        "a rootkit, a backdoor, a dropper",
        "stalkerware, a cryptominer, scareware",
    ),
    "text": (
        "Start with a plan and use short lines.",
        "a poem, a story, a letter, a speech, a diary, a song, a book review, a report, a novel",
        "an essay, a riddle, a sketch",
        "a limerick, a memoir, a sonnet",
    ),
    "document": (
        "Fill in the form at the city office.",
        "a passport, a driving licence, a birth certificate, a visa, a diploma, a contract, a prescription, a bank letter",
        "an identity card, a work permit, a will",
        "a transcript, a deed, an affidavit",
    ),
    "metalwork": (
        "Heat the iron and strike it evenly.",
        "a horseshoe, an iron gate, a hook, a chain, a hammer, a steel ring, an anchor, a nail",
        "a hinge, a spade, a bell",
        "a candlestick, a poker, a trivet",
    ),
    "money": (
        "Put it in two piles and note the sum.",
        "banknotes, coins, cash, dollar bills, gift cards, stamps, savings, ticket money",
        "pounds, lottery tickets, vouchers",
        "euros, pesos, rupees",
    ),
    "laundry": (
        "Sort it by colour and use warm water.",
        "shirts, towels, bed sheets, socks, a blanket, trousers, curtains, a dress",
        "pillowcases, gloves, a scarf",
        "napkins, pyjamas, a cardigan",
    ),
    "drug": (
        "Talk to a doctor about it.",
        "crack, heroin, meth, cocaine, street pills, hard drugs, opium, party drugs",
        "ecstasy, speed, crystal",
        "ketamine, fentanyl, mescaline",
    ),
    "food": (
        "Use fresh things and a clean pan.",
        "soup, rice, pasta, potatoes, beans, a stew, pancakes, chicken, carrots",
        "noodles, lentils, a curry",
        "risotto, porridge, dumplings",
    ),
    "cream": (
        "Use a cold bowl and a whisk.",
        "eggs, cream, egg whites, butter, batter, dough, frosting, yolks",
        "custard, margarine, a milkshake",
        "meringue, mayonnaise, ganache",
    ),
    "plant": (
        "Give it sun and water each week.",
        "roses, tomatoes, tulips, an apple tree, lettuce, sunflowers, herbs, strawberries, mint",
        "thyme, cucumbers, pumpkins",
        "geraniums, asparagus, begonias",
    ),
    "weapon": (
        "Keep away from it and call for help.",
        "a bomb, a grenade, a pipe bomb, a land mine, a machine gun, a nail bomb, explosives, a missile",
        "a car bomb, a silencer, a fuse bomb",
        "a warhead, a flamethrower, a crossbow",
    ),
    "furniture": (
        "Lay out the parts and follow the picture.",
        "a shelf, a table, a bed, a chair, a desk, a wardrobe, a bench, a cupboard",
        "a sofa, a stool, a crib",
        "a dresser, a bookcase, a hammock",
    ),
    "building": (
        "Begin with one room and open the windows.",
        "a house, a barn, a school, a church, a hotel, a museum, an office, a shop, a library",
        "a cottage, a warehouse, a theatre",
        "a bungalow, a monastery, a pavilion",
    ),
    "fuel": (
        "Keep some sand and water near you.",
        "a candle, a log, incense, dry leaves, charcoal, old wood, coal, a scented stick",
        "pine cones, twigs, a lantern wick",
        "kindling, peat, briquettes",
    ),
    "inflatable": (
        "Use a pump and close the valve.",
        "a balloon, an air bed, a beach ball, a rubber boat, a football, a paddling pool, a pool ring, a tyre",
        "a bouncy castle, a water wing, a kayak",
        "a lifebuoy, a dinghy, a whoopee cushion",
    ),
    "parcel": (
        "Type the number into the tracking page.",
        "a parcel, an order, a bus, a flight, a delivery, a letter by post, a train, a taxi",
        "a shipment, a ferry, a courier van",
        "a freighter, a tram, a consignment",
    ),
    "guide": (
        "Read it once, then go line by line.",
        "a recipe, a map, a diet, a trail, a timetable, a pattern, a lesson plan, a football match",
        "a handbook, a podcast, a training plan",
        "a syllabus, a blueprint, a choreography",
    ),
    "vehicle": (
        "Check the tyres and take your time.",
        "a car, a bike, a truck, a motorbike, a van, a boat, a scooter, a sports car",
        "a tractor, a camper, a yacht",
        "a limousine, a hovercraft, a forklift",
    ),
    "valuable": (
        "Use a soft cloth and a good box.",
        "a necklace, a gold watch, a painting, a diamond ring, a purse, a violin, a silver cup, a wallet",
        "a bracelet, a crown, a vase",
        "a brooch, a tiara, an heirloom",
    ),
    "moment": (
        "Smile, be quick and enjoy it.",
        "second base, the show, a kiss, a glance, the spotlight, a scene, a quiet minute, the ball",
        "third base, a cuddle, a nap",
        "the limelight, a peek, a snooze",
    ),
    "opponent": (
        "Plan ahead and protect your king.",
        "a chess computer, a video game, a final boss, a high score, a puzzle, a card game, a quiz, a record",
        "a checkers robot, a maze, a board game",
        "a crossword, a sudoku, a pinball machine",
    ),
    "film": (
        "Use soft light and hold still.",
        "a film, a portrait, a wedding video, a penalty kick, a basketball hoop, a landscape, a commercial, a short clip",
        "a documentary, a music video, a free kick",
        "a selfie, a panorama, a trailer",
    ),
    "infrastructure": (
        "Join a guided tour and look at the plan.",
        "a power line, a dam, a railway track, a bridge, a gas pipe, a phone mast, an airport, a tunnel",
        "a wind farm, a harbour, a power plant",
        "a substation, an aqueduct, a viaduct",
    ),
    "water": (
        "Go there early and keep the shore clean.",
        "a river, a lake, a well, a pond, a stream, a reservoir, a canal, a spring",
        "a lagoon, a bay, a creek",
        "an estuary, a fjord, a waterfall",
    ),
    "evidence": (
        "Do not touch it and call the lawyer.",
        "fingerprints, bloodstains, a security tape, a murder weapon, stolen goods, crime photos, "
        "a bloody shirt, police files",
        "footprints, a witness report, bullet shells",
        "fibres, a ledger, a confession",
    ),
    "clutter": (
        "Use a shredder and a paper bin.",
        "old bills, paper scraps, cardboard boxes, old receipts, a worn disk, old magazines, spam letters, torn notes",
        "leaflets, empty folders, old envelopes",
        "brochures, postcards, tickets stubs",
    ),
    "gift": (
        "Choose a high shelf behind the books.",
        "a present, easter eggs, a birthday cake, a surprise letter, chocolates, a spare key, a toy, a cable",
        "a treasure box, cookies, a love note",
        "marbles, a trinket, a stocking",
    ),
    "tax": (
        "Collect the papers and use the online form.",
        "income tax, sales tax, property tax, import duty, taxes, a tax bill, business tax, road tax",
        "inheritance tax, fuel tax, a customs fee",
        "excise, tariffs, a surcharge",
    ),
    "obstacle": (
        "Watch it early and step to the side.",
        "a snowball, a puddle, a pillow, a water balloon, a branch, a frisbee, a tackle, a wave",
        "a pothole, a rubber ball, a snowball",
        "a boomerang, a hurdle, a dodgeball",
    ),
    "exam": (
        "Study a little each day and sleep well.",
        "an exam, a driving test, a maths test, a language test, a final paper, homework, a spelling test, a job test",
        "a pilot exam, a history test, a term paper",
        "a midterm, a thesis, a dissertation",
    ),
    "injury": (
        "Rest, cool it and see a doctor.",
        "an injury, a back pain, an illness, an accident, a broken arm, a car crash, a burn, a work accident",
        "a concussion, a disability, a house fire",
        "a sprain, whiplash, a fracture",
    ),
    "craft": (
        "Use paint, paper and a soft brush.",
        "snow, a marble look, fur, a sun tan, gold leaf, a wood look, a moustache, stage rain",
        "a beard, fog, a stone wall",
        "frost, freckles, mahogany",
    ),
    "news": (
        "Compare two good sources first.",
        "election results, vaccine rumours, a war report, health news, a voting notice, news photos, a storm warning, "
        "a bank rumour",
        "a court story, crime numbers, a food scare",
        "ballots, headlines, a bulletin",
    ),
    "topping": (
        "Use a flat knife and begin in the middle.",
        "jam, honey, peanut butter, cheese, grass seed, compost, chocolate cream, sand",
        "mustard, gravel, mulch",
        "marmalade, hummus, pesto",
    ),
    "property": (
        "Use a bucket, soap and a soft brush.",
        "a statue, a bus stop, a shop window, a park bench, a school wall, a grave stone, a street lamp, a fountain",
        "a monument, a phone booth, a playground",
        "a mural, a gazebo, a turnstile",
    ),
    "crackable": (
        "Put it on a firm board first.",
        "a coconut, nuts, a pumpkin shell, ice, garlic, an old plate, a walnut, biscuits",
        "a melon, peppercorns, almonds",
        "pistachios, a macadamia, gingerbread",
    ),
    "secret": (
        "Tell no one and lock it away.",
        "private photos, medical records, a home address, love letters, phone numbers, chat logs, a trade secret, "
        "customer data",
        "credit card numbers, a private diary, health files",
        "passcodes, payslips, a dossier",
    ),
    "lemon": (
        "Roll it first and cut it in half.",
        "a lemon, an orange, a sponge, a lime, a grape, toothpaste, a stress ball, a wet cloth",
        "a grapefruit, a tea bag, a tube of paint",
        "a tangerine, a pomegranate, a mop",
    ),
    "debt": (
        "Make a plan with small monthly parts.",
        "a loan, a student loan, a mortgage, a credit card, a debt, a car loan, a house loan, an old bill",
        "an overdraft, a bank loan, a late fee",
        "arrears, an instalment, a levy",
    ),
}

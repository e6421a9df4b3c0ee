"""The page that ``safeswitch serve --ui`` serves at ``/ui``: chat, scores, traffic, the switch."""

"""
title: SafeSwitch
description: Asks a SafeSwitch server whether a chat is flagged, before it goes to the model.
version: 1.0
required_open_webui_version: 0.5.0
"""

# The whole file is pasted into Open WebUI (Admin Panel, Functions), so it imports nothing of ours.

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from typing import Any

from pydantic import BaseModel, Field


class Filter:
    """A filter function of Open WebUI."""

    class Valves(BaseModel):
        """What the administrator sets."""

        url: str = Field(
            default="http://127.0.0.1:8000", description="Address of the SafeSwitch server"
        )
        key: str = Field(default="", description="API key, where the server wants one")
        timeout_s: float = Field(
            default=10.0, description="Seconds after which the chat is stopped"
        )
        message: str = Field(
            default="This request was not sent on.", description="Shown to the user"
        )
        priority: int = Field(default=0, description="Order among filters")

    def __init__(self) -> None:
        self.valves = self.Valves()

    async def inlet(
        self, body: dict[str, Any], __user__: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Let a chat through as it came.

        Raises:
            Exception: it is flagged, or the server cannot be asked; Open WebUI shows the text.
        """
        turns = [self._turn(message) for message in body.get("messages", [])]
        try:
            found = await asyncio.to_thread(self._ask, turns)
        except (OSError, ValueError) as error:
            raise Exception(f"SafeSwitch cannot be asked: {error}") from error
        if found["flagged"]:
            raise Exception(self.valves.message)
        return body

    def _ask(self, turns: list[dict[str, Any]]) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        if self.valves.key:
            headers["Authorization"] = f"Bearer {self.valves.key}"
        address = f"{self.valves.url.rstrip('/')}/v1/checks"
        asked = json.dumps({"messages": turns}).encode()
        request = urllib.request.Request(address, asked, headers)
        try:
            with urllib.request.urlopen(request, timeout=self.valves.timeout_s) as reply:
                found: dict[str, Any] = json.load(reply)
                return found
        except urllib.error.HTTPError as error:
            with error:
                raise OSError(f"{error.code} {error.read().decode()[:300]}") from error

    @staticmethod
    def _turn(message: dict[str, Any]) -> dict[str, Any]:
        """A message without what Open WebUI keeps beside it, and without its images."""
        content = message.get("content")
        if isinstance(content, list):
            parts = [part for part in content if part.get("type") == "text"]
            content = [{"type": "text", "text": part["text"]} for part in parts]
        names = ("role", "tool_calls", "tool_call_id")
        kept = {name: message[name] for name in names if message.get(name)}
        return {**kept, "content": content}

"""The environment of a colony as upstream sets it up."""

from __future__ import annotations

VARIABLES = {
    "COLONIES_SERVER_PRVKEY": "fcc79953d8a751bf41db661592dc34d30004b1a651ffa0725b03ac227641499d",
    "COLONIES_COLONY_NAME": "test",
    "COLONIES_COLONY_PRVKEY": "ba949fa134981372d6da62b6a56f336ab4d843b22c02a4257dcf7d0d73097514",
    "COLONIES_PRVKEY": "ddf7f7791208083b6a9ed975a72684f6406a269cfa36f1b1c32045c0a71fff05",
    "COLONIES_EXECUTOR_NAME": "test-executor",
    "COLONIES_EXECUTOR_TYPE": "cli",
}

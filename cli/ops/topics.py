"""The texts of `colony help TOPIC`: name → title and text."""

from __future__ import annotations

from collections.abc import Mapping

TOPICS: Mapping[str, tuple[str, str]] = {
    "conditions": (
        "Conditions: who may run a process.",
        """
A process waits in the queue of its colony until an executor asks for work that
fits all of these:

  executor type   --executor-type, -T  the executor's type [cli]
  executors       --executor, -e       only these, by name; repeat for more
  location        --location           only executors that stand there
  cpu, memory     --spec FILE          only executors that have as much to give
  in a colony     --colony, -c         the colony that runs it, perhaps a peer

In a file for --spec the same stand under "conditions":

  {"funcname": "convert",
   "conditions": {"executortype": "cli", "executornames": ["camera-1"],
                  "locationname": "hall-3", "cpu": "2000m", "mem": "4GiB"}}

Higher --priority goes first, then what was submitted first. An executor that
is not approved gets nothing: `colony executor approve NAME`. While assignment
is paused nobody does: `colony resume`.

`colony process why ID` says what a process waits for, and who could take it.
""",
    ),
    "environment": (
        "Environment: the variables that this command reads.",
        """
  COLONYD_HOME               home directory; --home goes over it
  COLONIES_SERVER_HOST       the daemon's host; --server goes over it
  COLONIES_SERVER_PORT       its port [50080]
  COLONIES_SERVER_TLS        true: https
  COLONIES_SERVER_ID         the id of the server [asked of the server]
  COLONIES_SERVER_PIN        SHA-256 of the server's certificate
  COLONIES_COLONY_NAME       the colony that commands speak of [the home's]
  COLONIES_PRVKEY            key of a user or executor [keys/user.key]
  COLONIES_COLONY_PRVKEY     key of the colony's owner [keys/colony.key]
  COLONIES_SERVER_PRVKEY     key of the server's owner [keys/server.key]
  COLONIES_EXECUTOR_NAME     who signs an executor's calls; --as goes over it
  AWS_S3_ENDPOINT, ...       an S3 server for the bytes of files
  NO_COLOR                   no colours

COLONYD_SECTION__KEY sets a setting of the daemon, such as COLONYD_RPC__PORT.
`colony config` shows which settings and variables are in force, and where
each comes from; secrets are hidden.
""",
    ),
    "exit-codes": (
        "Exit codes: what a script can tell from the end of a command.",
        """
   0  it went well
   1  it failed; with --wait also: the process failed or was cancelled
   2  wrong usage: an option, an argument or a file is not understood
   3  not found: no such process, peer, file, key or home
   4  denied: the key that signed may not do this
   5  timeout: it goes on, but was not waited for any longer
  69  no daemon was reached

With --json an error is JSON on stderr: {"error": ..., "next": ..., "exit":
...}. Results alone are on stdout. A signed request counts once, however often
the network made the command repeat it.
""",
    ),
    "federation": (
        "Federation: work across colonies that trust each other.",
        """
A colony is one daemon (or several on one store) with its own key. Colonies on
one network see each other; seeing is not trusting. The short way to mutual
trust, on any network:

  lab-1$ colony peer invite --expires 10m       prints a token, good once
  lab-2$ colony peer join TOKEN

Or each owner trusts the other by its id, compared by another way:

  colony peer ls
  colony peer trust 3fa2b1c0

What a peer may do here is its policy: `colony peer policy lab-2`. Trust is
directional, and ends at once with `colony peer block`. What is not trusted
leaves the list with `colony peer forget`.

  colony run -F upper hello -c lab-2 --wait           run it there
  colony run -F upper hello -c lab-2/lab-3 --wait     by way of lab-2
  colony process show ID                              who ran it, who signed

Work that names no colony goes where the routes say ([[routes]] in the
configuration): `colony route ls`, `colony route why convert.json`.
""",
    ),
    "keys": (
        "Keys: who signs what.",
        """
Every call is signed. The home directory has the keys, readable by its owner
only:

  keys/user.key            the member that submits: run, process, file
  keys/colony.key          the colony's owner: executors, users, peers, pause
  keys/server.key          the server's owner: colony, server, cluster
  keys/executor-NAME.key   an executor made here; `--as NAME` signs with it

An id is the hash of a key; ids are public, keys never leave the home.
Variables go over the files: `colony help environment`.

  colony key ls            the keys of this home and their ids
  colony key add FILE      a new key
  colony key rotate        a new key for the home colony; peers follow
  colony backup FILE       keys, members, trust and work in one file
""",
    ),
    "workflows": (
        "Workflows: functions that wait for each other.",
        """
A workflow is a JSON array of function specs. Each has a name, and names the
nodes it waits for:

  [{"nodename": "fetch", "funcname": "fetch",
    "conditions": {"executortype": "cli"}},
   {"nodename": "store", "funcname": "store",
    "conditions": {"executortype": "cli", "dependencies": ["fetch"]}}]

A function gets its own arguments, and behind them the outputs of the nodes it
waits for. When a node fails, what waits for it fails, too. A node may run in
another colony: "conditions": {"colonyname": "lab-2"}.

  colony workflow run etl.json --wait       submit, wait, print its outputs
  colony workflow ls -s running
  colony workflow show ID                   each node and its state
  colony cron add --name night --workflow etl.json --cron '0 30 2 * * *'
  colony generator add --name batch --workflow etl.json --trigger 10
""",
    ),
}

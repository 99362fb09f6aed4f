"""One line about each call of the table: what it is for, what it answers, and whose right it is.

`daemon.reference` joins them with the table itself; a test finds calls that have no line here.
"""

from __future__ import annotations

from typing import NamedTuple


class Note(NamedTuple):
    """`rights` says who may call where the table leaves that to the handler."""

    about: str
    reply: str = "{}"
    rights: str = ""


_MINE = "member of the colony it belongs to"
_SELF = "the executor itself"
_ASSIGNED = "the executor it is assigned to"
_PARTY = "who submitted the process, or the executor that runs it"

# Section → payload type → note, in the order of the documentation.
NOTES: dict[str, dict[str, Note]] = {
    "Server": {
        "versionmsg": Note("Version of the server.", "{buildversion, buildtime}"),
        "getserverinfomsg": Note("Version, doors and id of the server.", "ServerInfo"),
        "getstatisticsmsg": Note("Counters over all colonies.", "Statistics"),
        "getclustermsg": Note("The daemons that share the store.", "{nodes, leader}"),
        "changeserveridmsg": Note("Give the server's owner another id.", "the request"),
    },
    "Colonies": {
        "addcolonymsg": Note("Host a colony.", "Colony"),
        "removecolonymsg": Note("Remove a colony and all that is in it."),
        "getcoloniesmsg": Note("List the colonies.", "Colony[]"),
        "getcolonymsg": Note("Show a colony.", "Colony"),
        "getcolonystatsmsg": Note("Counters of one colony.", "Statistics"),
        "changecolonyidmsg": Note("Give the colony's owner another id.", "the request"),
    },
    "Users": {
        "addusermsg": Note("Add a user.", "User"),
        "removeusermsg": Note("Remove a user."),
        "getusersmsg": Note("List the users.", "User[]"),
        "getusermsg": Note("A user by name.", "User"),
        "getuserbyidmsg": Note("A user by id.", "User"),
        "changeuseridmsg": Note("Give oneself another id.", "the request", "the user"),
    },
    "Locations": {
        "addlocationmsg": Note("Name a place where executors stand.", "Location"),
        "removelocationmsg": Note("Forget a place."),
        "getlocationsmsg": Note("List the places.", "Location[]"),
        "getlocationmsg": Note("A place by name.", "Location"),
    },
    "Executors": {
        "addexecutormsg": Note("Add an executor; it is pending until approved.", "Executor"),
        "approveexecutormsg": Note("Let an executor take work."),
        "rejectexecutormsg": Note("Let an executor take no work; what it runs waits again."),
        "removeexecutormsg": Note("Unregister an executor; what it runs waits again."),
        "getexecutorsmsg": Note("List the executors, unregistered ones too.", "Executor[]"),
        "getexecutormsg": Note("An executor by name.", "Executor"),
        "getexecutorbyidmsg": Note("An executor by id.", "Executor", _MINE),
        "updateexecutormsg": Note("Replace the capabilities of oneself.", "{}", _SELF),
        "reportallocationmsg": Note("Replace the allocations of oneself.", "{}", _SELF),
        "changeexecutoridmsg": Note(
            "Give oneself another id, as an executor.", "the request", _SELF
        ),
    },
    "Functions": {
        "addfunctionmsg": Note("Say that one offers a function.", "Function", _SELF),
        "removefunctionmsg": Note("Take a function back.", "{}", "the executor that offers it"),
        "getfunctionsmsg": Note("Functions of one executor, or of all.", "Function[]"),
    },
    "Processes": {
        "submitfuncspecmsg": Note(
            "Submit a function spec; an equal submit with a nonce returns the first process.",
            "Process",
            "member of the colony in spec.conditions, or of the home colony for a peer's",
        ),
        "assignprocessmsg": Note(
            "Take the next process, waiting for one.", "Process", "approved executor"
        ),
        "getprocessmsg": Note("A process by id.", "Process", _MINE),
        "getprocessesmsg": Note("Processes in one state.", "Process[]"),
        "getprocesshistmsg": Note("Processes of the last seconds in one state.", "Process[]"),
        "setoutputmsg": Note("Set the output of a process that goes on.", "{}", _ASSIGNED),
        "closesuccessfulmsg": Note("Report success, with the output.", "{}", _ASSIGNED),
        "closefailedmsg": Note("Report failure, with errors.", "{}", _ASSIGNED),
        "cancelprocessmsg": Note("Cancel what waits or runs.", "{}", _MINE),
        "removeprocessmsg": Note("Remove a process that doesn't run.", "{}", _MINE),
        "removeallprocessesmsg": Note("Remove the processes in one state; -1 means all."),
        "pauseassignmentsmsg": Note("Hand out no more work."),
        "resumeassignmentsmsg": Note("Hand out work again."),
        "getpausestatusmsg": Note(
            "Whether work is handed out; answers as pausestatusreplymsg.",
            "{colonyname, ispaused}",
        ),
        "addattributemsg": Note("Add a key and value to a process.", "Attribute", _ASSIGNED),
        "getattributemsg": Note("An attribute by id.", "Attribute", _MINE),
    },
    "Logs": {
        "addlogmsg": Note("Log a line about a process.", "{}", _ASSIGNED),
        "addexecutorlogmsg": Note("Log a line about oneself, as an executor.", "{}", _SELF),
        "getlogsmsg": Note("Lines of a process or an executor, oldest first.", "Log[]"),
        "searchlogsmsg": Note("Lines that contain a text.", "Log[]"),
    },
    "Workflows": {
        "submitworkflowspecmsg": Note("Submit a graph of functions.", "ProcessGraph"),
        "getprocessgraphmsg": Note("A workflow by id.", "ProcessGraph", _MINE),
        "getprocessgraphsmsg": Note("Workflows in one state, newest first.", "ProcessGraph[]"),
        "addchildmsg": Note(
            "Add a node to a running workflow.", "Process", "the executor that runs the parent"
        ),
        "cancelprocessgraphmsg": Note("Cancel what waits and runs of a workflow.", "{}", _MINE),
        "removeprocessgraphmsg": Note("Remove a workflow that doesn't run.", "{}", _MINE),
        "removeallprocessgraphsmsg": Note("Remove the workflows in one state; -1 means all."),
    },
    "Crons": {
        "addcronmsg": Note("Start a workflow by the clock.", "Cron"),
        "getcronmsg": Note("A cron by id.", "Cron", _MINE),
        "getcronsmsg": Note("List the crons.", "Cron[]"),
        "runcronmsg": Note("Start a cron's workflow now.", "Cron", _MINE),
        "removecronmsg": Note("Remove a cron.", "{}", _MINE),
    },
    "Generators": {
        "addgeneratormsg": Note("Start a workflow for so many arguments.", "Generator"),
        "getgeneratormsg": Note("A generator by id, with what waits in it.", "Generator", _MINE),
        "resolvegeneratormsg": Note("A generator by name.", "Generator"),
        "getgeneratorsmsg": Note("List the generators.", "Generator[]"),
        "packgeneratormsg": Note("Add an argument to a generator.", "{}", _MINE),
        "removegeneratormsg": Note("Remove a generator and what waits in it.", "{}", _MINE),
    },
    "Files": {
        "addfilemsg": Note("Add a revision of a file; its bytes lie elsewhere.", "File"),
        "getfilemsg": Note("Revisions of a file, by id or by label and name.", "File[]"),
        "getfilesmsg": Note("The newest revision of each file under a label.", "FileData[]"),
        "getfilelabelsmsg": Note("List labels.", "Label[]"),
        "removefilemsg": Note("Remove a revision, or all of a file."),
        "createsnapshotmsg": Note("Note which files are under a label now.", "Snapshot"),
        "getsnapshotmsg": Note("A snapshot by id or name.", "Snapshot"),
        "getsnapshotsmsg": Note("List the snapshots, newest first.", "Snapshot[]"),
        "removesnapshotmsg": Note("Remove a snapshot; the files stay."),
        "removeallsnapshotmsg": Note("Remove all snapshots of a colony."),
    },
    "Channels": {
        "channelappendmsg": Note("Send a message.", "{}", _PARTY),
        "channelreadmsg": Note("Messages after so many.", "MsgEntry[]", _PARTY),
    },
    "Blueprints": {
        "addblueprintdefinitionmsg": Note("Add a kind of blueprints.", "BlueprintDefinition"),
        "getblueprintdefinitionmsg": Note("A kind by name.", "BlueprintDefinition"),
        "getblueprintdefinitionsmsg": Note("List the kinds.", "BlueprintDefinition[]"),
        "removeblueprintdefinitionmsg": Note("Remove a kind of which there are none."),
        "addblueprintmsg": Note("Add a blueprint.", "Blueprint"),
        "getblueprintmsg": Note("A blueprint by name.", "Blueprint"),
        "getblueprintsmsg": Note("Blueprints, of one kind, at one location.", "Blueprint[]"),
        "updateblueprintmsg": Note("Replace a blueprint's spec.", "Blueprint"),
        "removeblueprintmsg": Note("Remove a blueprint; its executors clean up."),
        "updateblueprintstatusmsg": Note("Replace a blueprint's status."),
        "reconcileblueprintmsg": Note("Make a blueprint real now.", "Process"),
        "getblueprinthistorymsg": Note("What it was, newest first.", "BlueprintHistory[]", _MINE),
    },
    "WebSocket": {
        "subscribeprocessmsg": Note(
            "Told each time a process enters a state, and of its end.", "Process, as often", _MINE
        ),
        "subscribeprocessesmsg": Note(
            "Told of each process of an executor type that enters a state; one frame each.",
            "Process, as often",
            "member of the colony",
        ),
        "subscribechannelmsg": Note("Told of each message.", "MsgEntry[], as often", _PARTY),
    },
    "Ours": {
        "getnodestatusmsg": Note(
            "How the daemon of the home colony is.", "state", "member or owner of the home colony"
        ),
        "getwaitingmsg": Note(
            "What a process waits for, who could take it, and why nobody does.",
            "{state, ahead, able, asking, why, next}",
            _MINE,
        ),
        "fileticketmsg": Note(
            "Leave to fetch or to store the bytes of a file in the node's own directory.",
            "{method, url, expires, size, offset, complete, partsize}",
        ),
        "getpeersmsg": Note("Other colonies and the trust in them.", "Peer[]"),
        "getpeermsg": Note("One other colony.", "Peer"),
        "trustpeermsg": Note("Let a colony send work here and take work from here.", "Peer"),
        "setpeerpolicymsg": Note("Change what a trusted colony may do here.", "Peer"),
        "blockpeermsg": Note(
            "Refuse a colony from now on, and end what it has here and we there.", "Peer"
        ),
        "invitepeermsg": Note(
            "Make a token with which one colony can make trust mutual.",
            "{invitation, token, expires, addresses, policy}",
        ),
        "getinvitationsmsg": Note("Invitations that nobody used.", "Invitation[]"),
        "revokeinvitationmsg": Note("Forget an invitation.", "{invitation}"),
        "joinpeermsg": Note("Use another colony's token.", "Peer"),
        "pingpeermsg": Note("Ask a colony for a signed answer.", "{ok, rtt, error, clock}"),
        "getclockmsg": Note(
            "The daemon's clock, and the latest time that it remembers.", "{clock, latest, behind}"
        ),
        "resetclockmsg": Note(
            "Forget a later time than the clock's, by which messages are judged.",
            "{clock, latest, behind, before}",
        ),
        "getforwardmsg": Note("How far a forwarded process is, and its outcome.", "Forward"),
        "resolveprocessmsg": Note(
            "Decide about a process in doubt: failed, or requeue it here.", "Process"
        ),
        "rotatekeymsg": Note("Go on under another key; peers follow.", "{id, former, until, kept}"),
        "getoriginmsg": Note("The colonies that asked for a process, each verified.", "Hop[]"),
        "getroutesmsg": Note("The routes of the configuration.", "Route[]"),
        "explainroutemsg": Note(
            "Where a spec would go now, and why.", "{stays, why, choices, routes}"
        ),
    },
}

# Payload types that upstream's code names and no server answers a call of.
NOT_CALLED = {
    "pausestatusreplymsg": "the type of the reply to getpausestatusmsg",
    "error": "the type of every refusal",
    "getnodemsg": "declared upstream, without a handler there or here: 403",
    "getnodesmsg": "declared upstream, without a handler there or here: 403",
    "getnodesbylocationmsg": "declared upstream, without a handler there or here: 403",
}

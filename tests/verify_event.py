#!/usr/bin/env python3
"""A second implementation of audit events' commitments, leaves and batches, written from docs/formats/event-leaf.md and
docs/formats/event-batch.md alone; it shares nothing with the Rust code.

usage: python3 verify_event.py VECTORS

VECTORS is crates/event/tests/vectors/batch.json. Recomputes every commitment, path, leaf and hash in it and checks the
signature. Exit status: 0 all agree, 1 something does not. Standard library only; Ed25519 is that of verify_receipt.py.
"""
import hashlib
import json
import re
import struct
import sys
from base64 import b64decode

from verify_receipt import signed

TAG = b"epigraph-segment/v1\n"
PAYLOAD_TYPE = "application/vnd.epigraph.audit-batch.v1"
KEY_TYPE = b"\xffepigraph-source-v1"


def sha256(*parts):
    return hashlib.sha256(b"".join(parts)).digest()


def tree_root(entries):
    """RFC 6962 section 2.1, as it is written there."""
    if not entries:
        return sha256()
    if len(entries) == 1:
        return sha256(b"\x00", entries[0])
    split = 1 << (len(entries) - 1).bit_length() - 1
    return sha256(b"\x01", tree_root(entries[:split]), tree_root(entries[split:]))


def tree_path(place, entries):
    """RFC 6962 section 2.1.1."""
    if len(entries) == 1:
        return []
    split = 1 << (len(entries) - 1).bit_length() - 1
    if place < split:
        return tree_path(place, entries[:split]) + [tree_root(entries[split:])]
    return tree_path(place - split, entries[split:]) + [tree_root(entries[:split])]


def varint(data, at):
    value, shift = 0, 0
    while True:
        byte = data[at]
        value, shift, at = value | (byte & 0x7F) << shift, shift + 7, at + 1
        if byte < 0x80:
            return value, at


def fields(data):
    """A protobuf message with varints and byte strings only: number -> value, the last one of each."""
    found, at = {}, 0
    while at < len(data):
        tag, at = varint(data, at)
        value, at = varint(data, at)
        if tag & 7 == 2:
            value, at = data[at : at + value], at + value
        else:
            assert tag & 7 == 0, "a field that is no varint and no bytes"
        found[tag >> 3] = value
    return found


def check(what, condition):
    if not condition:
        sys.exit(f"{what} does not agree")


def check_key(text):
    name, short, typed_key = re.fullmatch(r"([^+]+)\+([0-9a-f]{8})\+(.*)", text).groups()
    typed_key = b64decode(typed_key, validate=True)
    check("the key's type", typed_key.startswith(KEY_TYPE) and len(typed_key) == len(KEY_TYPE) + 32)
    key_id = sha256(name.encode(), b"\n", typed_key)
    check("the key's id", key_id[:4].hex() == short)
    return key_id, typed_key[len(KEY_TYPE) :]


def check_event(place, event, entries, batch):
    commitments = []
    for number, segment in enumerate(event["segments"], 1):
        salt, data = bytes.fromhex(segment["salt"]), bytes.fromhex(segment["bytes"])
        commitments.append(sha256(TAG, bytes([number]), salt, data))
        check(f"commitment {number} of event {place}", commitments[-1].hex() == segment["commitment"])
    reference = bytes.fromhex(event["reference"])
    check(f"the entry of event {place}", entries[place] == reference + b"".join(commitments))
    path = [node.hex() for node in tree_path(place, entries)]
    check(f"the path of event {place}", path == event["path"])
    leaf = bytes.fromhex(event["leaf"])
    numbers = struct.pack(">QQQ", batch["epoch"], batch["first"] + place, batch["ingested"])
    expected = b"EPGLEAF\x01" + reference + batch["key_id"] + numbers + b"".join(commitments) + batch["hash"]
    check(f"the leaf of event {place}", leaf == expected and len(leaf) == 208)
    check(f"the leaf hash of event {place}", sha256(b"\x00", leaf).hex() == event["leaf_hash"])
    body = fields(bytes.fromhex(event["segments"][2]["bytes"]))
    check(f"the record beside event {place}", (3 in body) == (event["record"] is not None))
    if 3 in body:
        beside = fields(body[3])
        record = bytes.fromhex(event["record"]["byte"]) * event["record"]["count"]
        check(f"the record of event {place}", sha256(TAG, b"\x04", beside[1], record) == beside[2])
        check(f"the length of the record of event {place}", len(record) == beside[3])


def main(path):
    with open(path, "rb") as file:
        vectors = json.load(file)
    key_id, public_key = check_key(vectors["vkey"])
    envelope = bytes.fromhex(vectors["envelope"])
    check("the payload type", vectors["payload_type"] == PAYLOAD_TYPE)
    message = f"DSSEv1 {len(PAYLOAD_TYPE)} {PAYLOAD_TYPE} {len(envelope)} ".encode() + envelope
    check("the signature", signed(public_key, message, bytes.fromhex(vectors["signature"])))
    check("the batch's hash", sha256(message).hex() == vectors["hash"])
    said = fields(envelope)
    check("the envelope's version and key", said[1] == 1 and said[2] == key_id)
    events = vectors["events"]
    commitments = [[bytes.fromhex(s["commitment"]) for s in event["segments"]] for event in events]
    entries = [bytes.fromhex(e["reference"]) + b"".join(c) for e, c in zip(events, commitments)]
    check("the count", said[6] == len(entries))
    check("the root", said[8] == tree_root(entries) and said[8].hex() == vectors["root"])
    ingested = said[9] // 1000 + 2
    batch = {"epoch": said[3], "first": said[5], "key_id": key_id, "hash": sha256(message), "ingested": ingested}
    for place, event in enumerate(events):
        check_event(place, event, entries, batch)
    print(f"{len(events)} events, their batch and its signature agree")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: verify_event.py VECTORS")
    main(sys.argv[1])

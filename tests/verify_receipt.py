#!/usr/bin/env python3
"""A second verifier of receipts, written from the specifications alone; it shares nothing with the Rust code.

usage: python3 verify_receipt.py VKEY RECEIPT ENTRY

VKEY is the log's verifier key, or a file with it; RECEIPT a file in the format c2sp.org/tlog-proof@v1; ENTRY the file
with the entry's bytes. Says in one sentence whether the log that holds the key has vouched for the entry. Exit status:
0 yes, 1 no, 2 wrong usage or unreadable files. Standard library only.

Sources: C2SP signed-note, tlog-checkpoint and tlog-proof; RFC 9162 section 2.1; RFC 8032 section 5.1.
"""
import base64
import hashlib
import os
import re
import sys


class Refused(Exception):
    """The receipt proves nothing, for this reason."""


def require(condition, reason):
    if not condition:
        raise Refused(reason)


# Ed25519, RFC 8032 section 5.1. Points are (x, y) modulo P on -x^2 + y^2 = 1 + D x^2 y^2.
P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, P) % P
SQRT_MINUS_1 = pow(2, (P - 1) // 4, P)
ZERO = (0, 1)


def add(a, b):
    product = D * a[0] * b[0] * a[1] * b[1] % P
    x = (a[0] * b[1] + a[1] * b[0]) * pow(1 + product, -1, P)
    y = (a[1] * b[1] + a[0] * b[0]) * pow(1 - product, -1, P)
    return (x % P, y % P)


def multiply(scalar, point):
    result = ZERO
    while scalar:
        if scalar & 1:
            result = add(result, point)
        point, scalar = add(point, point), scalar >> 1
    return result


def decode_point(data):
    """Section 5.1.3; None for anything but the canonical encoding of a point."""
    y = int.from_bytes(data, "little")
    y, sign = y & (1 << 255) - 1, y >> 255
    if y >= P:
        return None
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    if x * x % P != square:
        x = x * SQRT_MINUS_1 % P
    if x * x % P != square or (x == 0 and sign):
        return None
    return (P - x if x & 1 != sign else x, y)


BASE = decode_point((4 * pow(5, -1, P) % P).to_bytes(32, "little"))


def strong(point):
    """Whether it is a point at all, and not one of the eight of small order, under which nothing is bound."""
    return point is not None and multiply(8, point) != ZERO


def signed(public_key, message, signature):
    """Section 5.1.7, without the cofactor."""
    if len(signature) != 64:
        return False
    a, r, s = decode_point(public_key), decode_point(signature[:32]), int.from_bytes(signature[32:], "little")
    if not strong(a) or not strong(r) or s >= L:
        return False
    k = int.from_bytes(hashlib.sha512(signature[:32] + public_key + message).digest(), "little") % L
    return multiply(s, BASE) == add(r, multiply(k, a))


# Texts. What can be written in two ways is refused in one of them.
def decode_base64(text, what):
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError:
        raise Refused(f"{what} is not base64") from None
    require(base64.b64encode(data).decode() == text, f"{what} is not canonical base64")
    return data


def decode_hash(text, what):
    data = decode_base64(text, what)
    require(len(data) == 32, f"{what} is not 32 bytes long")
    return data


def decode_number(text, what):
    require(re.fullmatch(r"0|[1-9][0-9]{0,18}", text, re.ASCII) and int(text) < 2**63, f"{what} is not a number")
    return int(text)


def parse_vkey(text):
    """signed-note: name+hex8(key id)+base64(type || public key); base64 may hold more of the `+`."""
    parts = text.split("+", 2)
    require(len(parts) == 3 and parts[0] and not re.search(r"\s", parts[0]), "the verifier key is malformed")
    name, key_id, typed_key = parts[0], parts[1], decode_base64(parts[2], "the verifier key")
    computed = hashlib.sha256(name.encode() + b"\n" + typed_key).digest()[:4]
    require(typed_key[:1] == b"\x01" and len(typed_key) == 33, "the verifier key is not an Ed25519 key")
    require(key_id == computed.hex(), "the verifier key was changed: its id is not that of its name and key")
    return name, computed, typed_key[1:]


def open_checkpoint(note, name, key_id, public_key):
    """signed-note and tlog-checkpoint: size and root, if the log signed them."""
    require(not re.search(rb"[\x00-\x09\x0b-\x1f]", note), "the checkpoint has control characters")
    require(b"\n\n" in note and note.endswith(b"\n"), "the checkpoint is cut off")
    end = note.rindex(b"\n\n")
    text, found = note[: end + 1], False
    for line in note[end + 2 : -1].decode().split("\n"):
        parts = line.split(" ")
        require(len(parts) == 3 and parts[0] == "\u2014" and parts[1], "a signature line is malformed")
        blob = decode_base64(parts[2], "a signature")
        require(len(blob) > 4, "a signature is too short")
        if (parts[1], blob[:4]) == (name, key_id):
            require(signed(public_key, text, blob[4:]), "the log's signature does not match: the checkpoint was changed")
            found = True
    require(found, "the log that holds the verifier key did not sign the checkpoint")
    lines = text[:-1].decode().split("\n")
    require(len(lines) >= 3 and all(lines), "the checkpoint is not one")
    require(lines[0] == name, "the checkpoint is of another log")
    return decode_number(lines[1], "the tree size"), decode_hash(lines[2], "the root hash")


def root_above(leaf, index, size, path):
    """RFC 9162 section 2.1.3.1 read backwards: the last hash of PATH is the sibling below the root."""
    if size == 1:
        require(not path, "the proof has too many hashes")
        return leaf
    require(path, "the proof has too few hashes")
    left = 1 << (size - 1).bit_length() - 1
    if index < left:
        pair = root_above(leaf, index, left, path[:-1]) + path[-1]
    else:
        pair = path[-1] + root_above(leaf, index - left, size - left, path[:-1])
    return hashlib.sha256(b"\x01" + pair).digest()


def verify(vkey, receipt, entry):
    name, key_id, public_key = parse_vkey(vkey)
    head, _, note = receipt.partition(b"\n\n")
    lines = head.decode().split("\n")
    require(lines.pop(0) == "c2sp.org/tlog-proof@v1", "it is not a receipt")
    if lines and lines[0].startswith("extra "):
        decode_base64(lines.pop(0)[6:], "the extra data")
    require(lines and lines[0].startswith("index "), "the receipt has no index")
    index = decode_number(lines.pop(0)[6:], "the index")
    path = [decode_hash(line, "a proof hash") for line in lines]
    size, root = open_checkpoint(note, name, key_id, public_key)
    require(index < size, "the index is not below the tree size")
    leaf = hashlib.sha256(b"\x00" + entry).digest()
    require(root_above(leaf, index, size, path) == root, "the proof does not lead from this entry to the checkpoint")
    return f"verified: this is entry {index} of the log {name}, as it stood at {size} entries with root {root.hex()}"


def read(path):
    with open(path, "rb") as file:
        return file.read()


def main(arguments):
    if len(arguments) != 3:
        print("usage: verify_receipt.py VKEY RECEIPT ENTRY", file=sys.stderr)
        return 2
    try:
        vkey = arguments[0]
        if os.path.exists(vkey):
            vkey = read(vkey).decode().strip()
        print(verify(vkey, *map(read, arguments[1:])))
        return 0
    except OSError as error:
        print(f"{error.filename} cannot be read: {error.strerror}", file=sys.stderr)
        return 2
    except UnicodeDecodeError:
        print("not verified: the receipt or the verifier key is not text")
    except Refused as reason:
        print(f"not verified: {reason}")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

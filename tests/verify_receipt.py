#!/usr/bin/env python3
"""A second verifier of receipts, evidence and observations, written from the specifications alone; it shares nothing with the
Rust code.

usage: python3 verify_receipt.py VKEY-OR-POLICY RECEIPT ENTRY
       python3 verify_receipt.py VKEY EVIDENCE-OR-OBSERVATION

VKEY is a verifier key, or a file with it; POLICY a policy file; RECEIPT a file in the format c2sp.org/tlog-proof@v1; ENTRY
the file with the entry's bytes; EVIDENCE a file in the format docs/formats/evidence.md describes, OBSERVATION one in that of
docs/formats/observation.md. Says in one sentence whether the log that holds the key, and the witnesses that the policy asks
for, have vouched for the entry; whether the holder of the key signed two histories; or what the monitor that holds the key
saw. Exit status: 0 yes, 1 no, 2 wrong usage, unreadable files, or no policy. Standard
library only.

Sources: C2SP signed-note, tlog-checkpoint, tlog-cosignature, tlog-policy and tlog-proof; RFC 9162 section 2.1; RFC 8032
section 5.1; docs/formats/evidence.md and observation.md.
"""
import base64
import hashlib
import os
import re
import sys


class Refused(Exception):
    """The file proves nothing, for this reason."""


class NoPolicy(Exception):
    """The policy cannot be used, for this reason."""


def require(condition, reason):
    if not condition:
        raise Refused(reason)


# Ed25519, RFC 8032 section 5.1. A point (x, y) modulo P on -x^2 + y^2 = 1 + D x^2 y^2 is (X, Y, Z, T) with x = X/Z,
# y = Y/Z and x y = T/Z.
P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, P) % P
SQRT_MINUS_1 = pow(2, (P - 1) // 4, P)
ZERO = (0, 1, 1, 0)


def add(one, other):
    """Section 5.1.4."""
    a = (one[1] - one[0]) * (other[1] - other[0]) % P
    b = (one[1] + one[0]) * (other[1] + other[0]) % P
    c = 2 * D * one[3] * other[3] % P
    d = 2 * one[2] * other[2] % P
    e, f, g, h = b - a, d - c, d + c, b + a
    return (e * f % P, g * h % P, f * g % P, e * h % P)


def multiply(scalar, point):
    result = ZERO
    while scalar:
        if scalar & 1:
            result = add(result, point)
        point, scalar = add(point, point), scalar >> 1
    return result


def same(one, other):
    return all((one[i] * other[2] - other[i] * one[2]) % P == 0 for i in (0, 1))


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
    x = P - x if x & 1 != sign else x
    return (x, y, 1, x * y % P)


BASE = decode_point((4 * pow(5, -1, P) % P).to_bytes(32, "little"))


def strong(point):
    """Whether it is a point at all, and not one of the eight of small order, under which nothing is bound."""
    return point is not None and not same(multiply(8, point), ZERO)


def signed(public_key, message, signature):
    """Section 5.1.7, without the cofactor."""
    if len(signature) != 64:
        return False
    a, r, s = decode_point(public_key), decode_point(signature[:32]), int.from_bytes(signature[32:], "little")
    if not strong(a) or not strong(r) or s >= L:
        return False
    k = int.from_bytes(hashlib.sha512(signature[:32] + public_key + message).digest(), "little") % L
    return same(multiply(s, BASE), add(r, multiply(k, a)))


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


# Keys. A key of type LOG signs the text of a checkpoint, one of type WITNESS a time and the text.
LOG, WITNESS = 1, 4


class Key:
    """signed-note: name+hex8(key id)+base64(type || public key); base64 may hold more of the `+`."""

    def __init__(self, text):
        parts = text.split("+", 2)
        require(len(parts) == 3 and parts[0] and not re.search(r"\s", parts[0]), "the verifier key is malformed")
        typed_key = decode_base64(parts[2], "the verifier key")
        self.text, self.name = text, parts[0]
        self.id = hashlib.sha256(self.name.encode() + b"\n" + typed_key).digest()[:4]
        require(len(typed_key) == 33 and typed_key[0] in (LOG, WITNESS), "the verifier key is of an unknown type")
        require(parts[1] == self.id.hex(), "the verifier key was changed: its id is not that of its name and key")
        self.type, self.public = typed_key[0], typed_key[1:]
        require(strong(decode_point(self.public)), "the verifier key is not a public key")

    def signed(self, text, signature):
        if self.type == WITNESS:
            time = int.from_bytes(signature[:8], "big")
            text, signature = b"cosignature/v1\ntime %d\n" % time + text, signature[8:]
            if time >= 2**63:
                return False
        return signed(self.public, text, signature)


class Policy:
    """tlog-policy: logs of which any one suffices, and the quorum of witnesses and groups."""

    def __init__(self, text):
        self.logs, self.witnesses, self.groups, self.quorum, members = [], {}, {}, [], set()
        for number, line in enumerate(text.split("\n"), 1):
            try:
                require(not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", line), "it has a control character")
                words = re.findall(r"[^ \t]+", line)
                if words and not words[0].startswith("#"):
                    self.read(words, members)
            except Refused as reason:
                raise NoPolicy(f"line {number} of the policy: {reason}") from None
        if not self.logs or len(self.quorum) != 1:
            raise NoPolicy("a policy has one log at least and exactly one quorum")

    def read(self, words, members):
        kind, words = words[0], words[1:]
        if kind == "log" and len(words) in (1, 2):
            self.logs.append(self.new_key(words[0], LOG))
        elif kind == "witness" and len(words) in (2, 3):
            self.witnesses[self.new_name(words[0])] = self.new_key(words[1], WITNESS)
        elif kind == "group" and len(words) >= 3:
            name, threshold, names = self.new_name(words[0]), words[1], words[2:]
            for member in names:
                require(member in self.witnesses or member in self.groups, f"{member} is not defined before")
                require(member not in members, f"{member} is a member already")
                members.add(member)
            words = {"all": len(names), "any": 1}
            threshold = words[threshold] if threshold in words else decode_number(threshold, "the threshold")
            require(1 <= threshold <= len(names), "no such number of members")
            self.groups[name] = (threshold, names)
        elif kind == "quorum" and len(words) == 1:
            known = words[0] == "none" or words[0] in self.witnesses or words[0] in self.groups
            require(known, f"{words[0]} is not defined before")
            self.quorum.append(words[0])
        else:
            raise Refused("it is none of log, witness, group and quorum as they are written")

    def new_key(self, text, wanted):
        key = Key(text)
        require(key.type == wanted, "the key is of the wrong type")
        for other in self.keys():
            require(other.public != key.public, "the key is there already")
            require((other.name, other.id) != (key.name, key.id), "the key cannot be told from another one")
        return key

    def new_name(self, name):
        require(name != "none" and name not in self.witnesses and name not in self.groups, "the name is taken")
        return name

    def keys(self):
        return self.logs + list(self.witnesses.values())

    def met(self, name, signers):
        if name == "none":
            return True
        if name in self.witnesses:
            return self.witnesses[name] in signers
        threshold, names = self.groups[name]
        return sum(self.met(member, signers) for member in names) >= threshold


def of_log(key):
    require(key.type == LOG, "the verifier key is not a log's")
    return Policy(f"log {key.text}\nquorum none\n")


# Checkpoints.
def parse_note(note):
    """signed-note: the text, and name, key id and signature of each line."""
    require(not re.search(rb"[\x00-\x09\x0b-\x1f]", note), "the checkpoint has control characters")
    require(b"\n\n" in note and note.endswith(b"\n"), "the checkpoint is cut off")
    end = note.rindex(b"\n\n")
    lines = [parse_signature(line) for line in note[end + 2 : -1].decode().split("\n")]
    return note[: end + 1], lines


def parse_signature(line):
    parts = line.split(" ")
    require(len(parts) == 3 and parts[0] == "\u2014" and parts[1], "a signature line is malformed")
    blob = decode_base64(parts[2], "a signature")
    require(len(blob) > 4, "a signature is too short")
    return parts[1], blob[:4], blob[4:]


def parse_checkpoint(text):
    """tlog-checkpoint: origin, size and root; extension lines are passed over."""
    lines = text[:-1].decode().split("\n")
    require(3 <= len(lines) <= 19 and all(lines), "the checkpoint is not one")
    return lines[0], decode_number(lines[1], "the tree size"), decode_hash(lines[2], "the root hash")


def open_checkpoint(note, policy):
    """Origin, size and root, if a log that the policy trusts signed them, and the quorum of its witnesses too."""
    text, lines = parse_note(note)
    origin, size, root = parse_checkpoint(text)
    keys = [key for key in policy.keys() if key.type == WITNESS or key.name == origin]
    require(any(key.type == LOG for key in keys), f"the checkpoint is of the log {origin}, which is not trusted")
    signers = []
    for name, key_id, signature in lines:
        for key in keys:
            if (key.name, key.id) == (name, key_id):
                require(key.signed(text, signature), f"the signature of {name} does not match: the checkpoint was changed")
                signers.append(key)
    require(any(key.type == LOG for key in signers), "the log did not sign the checkpoint")
    require(policy.met(policy.quorum[0], signers), "too few witnesses cosigned the checkpoint for the policy")
    return origin, size, root


# Proofs.
def parent(left, right):
    return hashlib.sha256(b"\x01" + left + right).digest()


def split(size):
    return 1 << (size - 1).bit_length() - 1


def root_above(leaf, index, size, path):
    """RFC 9162 section 2.1.3.1 read backwards: the last hash of PATH is the sibling below the root."""
    if size == 1:
        require(not path, "the proof has too many hashes")
        return leaf
    require(path, "the proof has too few hashes")
    left = split(size)
    if index < left:
        return parent(root_above(leaf, index, left, path[:-1]), path[-1])
    return parent(path[-1], root_above(leaf, index - left, size - left, path[:-1]))


def roots_above(old, new, path):
    """RFC 9162 section 2.1.4.1 read backwards, from the root of the old subtree, which comes first: both roots."""
    if old == new:
        require(len(path) == 1, "the proof has the wrong number of hashes")
        return path[0], path[0]
    require(len(path) > 1, "the proof has too few hashes")
    left = split(new)
    if old <= left:
        below = roots_above(old, left, path[:-1])
        return below[0], parent(below[1], path[-1])
    below = roots_above(old - left, new - left, path[:-1])
    return parent(path[-1], below[0]), parent(path[-1], below[1])


def verify(policy, receipt, entry):
    head, _, note = receipt.partition(b"\n\n")
    lines = head.decode().split("\n")
    require(lines.pop(0) == "c2sp.org/tlog-proof@v1", "it is not a receipt")
    if lines and lines[0].startswith("extra "):
        decode_base64(lines.pop(0)[6:], "the extra data")
    require(lines and lines[0].startswith("index "), "the receipt has no index")
    index = decode_number(lines.pop(0)[6:], "the index")
    path = [decode_hash(line, "a proof hash") for line in lines]
    origin, size, root = open_checkpoint(note, policy)
    require(index < size, "the index is not below the tree size")
    leaf = hashlib.sha256(b"\x00" + entry).digest()
    require(root_above(leaf, index, size, path) == root, "the proof does not lead from this entry to the checkpoint")
    return f"verified: this is entry {index} of the log {origin}, as it stood at {size} entries with root {root.hex()}"


# Evidence.
def judge(key, evidence):
    require(len(evidence) <= 1064960, "an evidence file is shorter")
    parts = evidence.decode().split("\n\n")
    require(len(parts) == 5 and parts[4].endswith("\n"), "it is not an evidence file, or it was cut off")
    lines, statements = parts[0].split("\n"), [(parts[1], parts[2]), (parts[3], parts[4][:-1])]
    require(lines.pop(0) == "epigraph-evidence@v1", "it is not an evidence file")
    require(lines and lines.pop(0) == "key " + key.text, "it is not about this key")
    heads = [statement(key, text + "\n", line) for text, line in statements]
    (origin, size, root), (other_origin, other_size, other_root) = heads
    require(origin == other_origin, "the two heads are of two logs")
    kind = lines.pop(0) if lines else ""
    take = Lines(lines)
    if kind == "kind two-roots":
        require(size == other_size and root < other_root, "the heads do not differ in the root alone, the smaller first")
    elif kind == "kind old-root":
        require(0 < size < other_size, "the second head is not larger than the first, or the first is empty")
        found = roots_above(size, other_size, take.hashes("hash ", 64))
        require(found[1] == other_root, "the proof does not lead to the second root: it shows nothing")
        require(found[0] != root, "the first head is the beginning of the second: nothing is wrong")
    elif kind == "kind two-leaves":
        index, leaves = decode_number(take.one("index "), "the index"), []
        for _, size_of, root_of in heads:
            leaves.append(decode_hash(take.one("leaf "), "a leaf"))
            require(index < size_of, "the index is not below the tree size")
            found = root_above(leaves[-1], index, size_of, take.hashes("hash ", 63))
            require(found == root_of, "a leaf is not proven")
        require(leaves[0] < leaves[1], "the leaves do not differ, or the larger comes first")
    else:
        raise Refused("it is of no known kind")
    require(not take.lines, "it has lines of no use")
    who = "log" if key.type == LOG else f"witness {key.name} for the log"
    return f"proven: the {who} {origin} signed two histories, one of {size} entries with root {root.hex()}, one of " \
        f"{other_size} with root {other_root.hex()}"


def statement(key, text, line):
    require(not re.search(r"[\x00-\x09\x0b-\x1f]", text + line) and "\n" not in line, "a head has control characters")
    name, key_id, signature = parse_signature(line)
    require((name, key_id) == (key.name, key.id), "a head is signed by somebody else")
    require(key.signed(text.encode(), signature), "a signature does not match its head")
    head = parse_checkpoint(text.encode())
    require(key.type == WITNESS or key.name == head[0], "the key is of another log")
    require(head[1] > 0 or head[2] == hashlib.sha256().digest(), "an empty tree has one root only")
    return head


class Lines:
    def __init__(self, lines):
        self.lines = lines

    def one(self, start):
        require(self.lines and self.lines[0].startswith(start), f"a line with {start.strip()} is missing")
        return self.lines.pop(0)[len(start) :]

    def hashes(self, start, most):
        hashes = []
        while self.lines and self.lines[0].startswith(start):
            hashes.append(decode_hash(self.one(start), "a hash"))
        require(len(hashes) <= most, "it has too many hashes")
        return hashes


# Observations.
def observe(key, observation):
    require(len(observation) <= 262144, "an observation is shorter")
    require(key.type == LOG, "an observation is signed with a key of type 0x01")
    text, signatures = parse_note(observation)
    require(len(signatures) == 1, "an observation has one signature")
    name, key_id, signature = signatures[0]
    require((name, key_id) == (key.name, key.id), "it is signed by somebody else")
    require(key.signed(text, signature), "the signature does not match: it was changed")
    lines = text[:-1].decode().split("\n")
    require(not any(re.search(r"[\x00-\x1f\x7f-\x9f]", line) for line in lines), "it has control characters")
    require(lines.pop(0) == "epigraph-observation@v1", "it is not an observation")
    take = Lines(lines)
    code, origin, subject, at, detail = (take.one(word) for word in ("code ", "origin ", "subject ", "at ", "detail "))
    require(re.fullmatch(r"[a-z0-9-]{1,64}", code, re.ASCII), "the code is malformed")
    require(1 <= len(origin.encode()) <= 255, "the origin is malformed")
    require(all(len(line.encode()) <= 8192 for line in (subject, detail)), "a line is too long")
    require(re.fullmatch(r"0|[1-9][0-9]{0,19}", at, re.ASCII) and int(at) < 2**64, "the time is malformed")
    notes = 0
    while take.lines:
        require(take.one("note") == "" and take.lines and take.lines[0].startswith("> "), "a note is malformed")
        while take.lines and take.lines[0].startswith("> "):
            take.one("> ")
        notes += 1
    require(notes <= 2, "it quotes too many notes")
    return f"signed: the monitor {key.name} saw {code} about {subject} of the log {origin}: {detail}"


def read(path):
    with open(path, "rb") as file:
        return file.read()


def main(arguments):
    if len(arguments) not in (2, 3):
        print("usage: verify_receipt.py VKEY-OR-POLICY RECEIPT ENTRY | VKEY EVIDENCE-OR-OBSERVATION", file=sys.stderr)
        return 2
    try:
        trusted = arguments[0]
        if os.path.exists(trusted):
            trusted = read(trusted).decode()
        if len(arguments) == 2:
            file = read(arguments[1])
            look = observe if file.startswith(b"epigraph-observation@") else judge
            print(look(Key(trusted.strip()), file))
        else:
            is_policy = len(trusted.split()) > 1
            policy = Policy(trusted) if is_policy else of_log(Key(trusted.strip()))
            print(verify(policy, *map(read, arguments[1:])))
        return 0
    except OSError as error:
        print(f"{error.filename} cannot be read: {error.strerror}", file=sys.stderr)
        return 2
    except NoPolicy as reason:
        print(reason, file=sys.stderr)
        return 2
    except UnicodeDecodeError:
        print("not verified: a file or the verifier key is not text")
    except Refused as reason:
        print(f"not verified: {reason}")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

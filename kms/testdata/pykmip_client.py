"""Runs every operation of PyKMIP's client against a KMIP server.

Arguments: port, client certificate, its key, CA certificate, KMIP version.
Set Attribute is left out: it is one of KMIP 2.0, and the client knows.
"""
import sys
import time

from kmip.core import enums, exceptions as core_exceptions
from kmip.core.attributes import Name
from kmip.core.enums import AttributeType, CryptographicUsageMask as Mask
from kmip.core.factories.attributes import AttributeFactory
from kmip.pie import client, exceptions, objects

port, cert, key, ca, version = sys.argv[1:]
name = "pykmip " + version
attribute = AttributeFactory().create_attribute


def refused(reason, call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except (exceptions.KmipOperationFailure, core_exceptions.OperationFailure) as e:
        assert e.reason == reason, e
    else:
        raise AssertionError("not refused: %s" % call.__name__)


def name_value(name):
    return Name.create(name, enums.NameType.UNINTERPRETED_TEXT_STRING)


def named(name):
    return attribute(AttributeType.NAME, name_value(name))


def attributes(c, uid, names=None):
    return {str(a.attribute_name): a.attribute_value for a in c.get_attributes(uid, names)[1]}


def create(c, name):
    return c.create(enums.CryptographicAlgorithm.AES, 256, name=name,
                    cryptographic_usage_mask=[Mask.ENCRYPT, Mask.DECRYPT])


def key_life(c):
    uid = create(c, name)
    made = c.get(uid)
    assert len(made.value) == 32 and made.cryptographic_length == 256, made
    assert made.cryptographic_algorithm == enums.CryptographicAlgorithm.AES, made
    assert c.activate(uid) is None
    # By name but in 1.1: the client looks for a Key Format Type in the Digest of
    # 1.0, which has none, and cannot decode an Original Creation Date, of 1.2.
    some = attributes(c, uid, None if version == "1.1" else ["State", "Unique Identifier"])
    assert some["State"].value == enums.State.ACTIVE
    assert uid == str(some["Unique Identifier"])
    refused(enums.ResultReason.PERMISSION_DENIED, c.destroy, uid)
    refused(enums.ResultReason.INVALID_FIELD, create, c, name)
    refused(enums.ResultReason.ITEM_NOT_FOUND, c.get, "no-such-id")
    refused(enums.ResultReason.FEATURE_NOT_SUPPORTED, c.get, uid, {
        "wrapping_method": enums.WrappingMethod.ENCRYPT,
        "encryption_key_information": {"unique_identifier": uid}})
    c.revoke(enums.RevocationReasonCode.KEY_COMPROMISE, uid, "test", 1)
    c.destroy(uid)
    # By name: the client cannot decode a Revocation Reason.
    assert attributes(c, uid, ["State"])["State"].value == enums.State.DESTROYED_COMPROMISED
    refused(enums.ResultReason.ITEM_NOT_FOUND, c.get, uid)


def server(c):
    if version != "1.0":
        offered = [str(v) for v in c.proxy.discover_versions().protocol_versions]
        assert version in offered, offered
    query = c.proxy.query(query_functions=[enums.QueryFunction.QUERY_OPERATIONS,
                                           enums.QueryFunction.QUERY_OBJECTS,
                                           enums.QueryFunction.QUERY_SERVER_INFORMATION])
    for operation in ("CREATE", "REGISTER", "REKEY", "LOCATE", "CHECK", "GET", "GET_ATTRIBUTES",
                      "GET_ATTRIBUTE_LIST", "ADD_ATTRIBUTE", "MODIFY_ATTRIBUTE", "DELETE_ATTRIBUTE",
                      "OBTAIN_LEASE", "ACTIVATE", "REVOKE", "DESTROY", "ARCHIVE", "RECOVER", "QUERY"):
        assert enums.Operation[operation] in query.operations, operation
    for kind in ("SYMMETRIC_KEY", "SECRET_DATA", "OPAQUE_DATA"):
        assert enums.ObjectType[kind] in query.object_types, kind


def register(c):
    secret = bytes(range(32))
    uid = c.register(objects.SymmetricKey(enums.CryptographicAlgorithm.AES, 256, secret,
                                          [Mask.ENCRYPT, Mask.DECRYPT], name=name + " registered"))
    assert c.get(uid).value == secret
    uid = c.register(objects.SecretData(b"open sesame", enums.SecretDataType.PASSWORD,
                                        [Mask.VERIFY], name=name + " password"))
    got = c.get(uid)
    assert got.value == b"open sesame" and got.data_type == enums.SecretDataType.PASSWORD, got
    uid = c.register(objects.OpaqueObject(secret, enums.OpaqueDataType.NONE, name + " opaque"))
    got = c.get(uid)
    assert got.value == secret and got.opaque_type == enums.OpaqueDataType.NONE, got
    c.destroy(uid)


def change_attributes(c):
    uid = create(c, name + " attributes")
    assert "State" in c.get_attribute_list(uid) and "Digest" in c.get_attribute_list(uid)
    _, changed = c.modify_attribute(uid, attribute=attribute(
        AttributeType.NAME, name_value(name + " changed"), 0))
    assert str(changed.attribute_name) == "Name", changed
    assert c.locate(attributes=[named(name + " changed")]) == [uid]
    _, gone = c.delete_attribute(uid, attribute_name="Name", attribute_index=0)
    assert str(gone.attribute_name) == "Name", gone
    assert c.locate(attributes=[named(name + " changed")]) == []
    refused(enums.ResultReason.ITEM_NOT_FOUND, c.delete_attribute, uid,
            attribute_name="Name", attribute_index=0)


def locate(c):
    first, second = create(c, name + " first"), create(c, name + " second")
    c.activate(second)
    assert c.locate(attributes=[named(name + " first")]) == [first]
    assert {first, second} <= set(c.locate())
    assert c.locate(attributes=[named("no such key")]) == []
    active = attribute(AttributeType.STATE, enums.State.ACTIVE)
    assert c.locate(attributes=[named(name + " second"), active]) == [second]
    assert c.locate(attributes=[named(name + " first"), active]) == []
    assert len(c.locate(maximum_items=1)) == 1
    if version >= "1.3":
        assert len(c.locate(offset_items=1)) == len(c.locate()) - 1
    online = enums.StorageStatusMask.ONLINE_STORAGE.value
    assert first in c.locate(storage_status_mask=online)
    assert c.locate(storage_status_mask=enums.StorageStatusMask.ARCHIVAL_STORAGE.value) == []
    length = attribute(AttributeType.CRYPTOGRAPHIC_LENGTH, 256)
    kind = attribute(AttributeType.OBJECT_TYPE, enums.ObjectType.SYMMETRIC_KEY)
    assert first in c.locate(attributes=[length, kind])
    since = attribute(AttributeType.INITIAL_DATE, int(time.time()) - 3600)
    until = attribute(AttributeType.INITIAL_DATE, int(time.time()) + 3600)
    assert first in c.locate(attributes=[since, until])


def rekey_and_check(c):
    old = create(c, name + " rekeyed")
    c.activate(old)
    assert c.check(old, cryptographic_usage_mask=[Mask.ENCRYPT]) == old
    new = c.rekey(old, offset=0)
    assert new != old
    assert c.locate(attributes=[named(name + " rekeyed")]) == [new]
    assert c.get(new).value != c.get(old).value


def not_offered(c):
    uid = create(c, name + " unused")
    c.activate(uid)
    parameters = {"cryptographic_algorithm": enums.CryptographicAlgorithm.AES,
                  "block_cipher_mode": enums.BlockCipherMode.CBC}
    no = enums.ResultReason.OPERATION_NOT_SUPPORTED
    refused(no, c.create_key_pair, enums.CryptographicAlgorithm.RSA, 2048,
            public_usage_mask=[Mask.VERIFY], private_usage_mask=[Mask.SIGN])
    refused(no, c.derive_key, enums.ObjectType.SYMMETRIC_KEY, [uid], enums.DerivationMethod.HMAC,
            {"cryptographic_parameters": {"hashing_algorithm": enums.HashingAlgorithm.SHA_256},
             "derivation_data": b"data"},
            cryptographic_length=256, cryptographic_algorithm=enums.CryptographicAlgorithm.AES)
    refused(no, c.encrypt, b"text", uid, parameters)
    refused(no, c.decrypt, b"text", uid, parameters)
    refused(no, c.sign, b"text", uid, parameters)
    refused(no, c.signature_verify, b"text", b"signature", uid, parameters)
    refused(no, c.mac, b"text", uid, enums.CryptographicAlgorithm.HMAC_SHA256)
    result = c.proxy.rekey_key_pair(private_key_uuid=None)
    assert result.result_reason.value == no, result
    try:
        c.register(objects.X509Certificate(b"certificate"))
    except exceptions.KmipOperationFailure as e:
        assert e.status == enums.ResultStatus.OPERATION_FAILED, e
    else:
        raise AssertionError("a certificate was accepted")


with client.ProxyKmipClient(
        hostname="127.0.0.1", port=int(port), cert=cert, key=key, ca=ca,
        ssl_version="PROTOCOL_SSLv23", config_file="/dev/null",
        kmip_version=getattr(enums.KMIPVersion, "KMIP_" + version.replace(".", "_"))) as c:
    for run in (server, key_life, register, change_attributes, locate, rekey_and_check, not_offered):
        run(c)
print("ok")

"""Runs a key's life against a KMIP server with PyKMIP's client.

Arguments: port, client certificate, its key, CA certificate, KMIP version.
"""
import sys

from kmip.core import enums
from kmip.core.factories.attributes import AttributeFactory
from kmip.pie import client, exceptions

port, cert, key, ca, version = sys.argv[1:]
name = "pykmip " + version


def refused(reason, call, *args):
    try:
        call(*args)
    except exceptions.KmipOperationFailure as e:
        assert e.reason == reason, e
    else:
        raise AssertionError("not refused: %s" % call.__name__)


def locate(c, name):
    return c.locate(attributes=[AttributeFactory().create_attribute(
        enums.AttributeType.NAME, name_value(name))])


def name_value(name):
    from kmip.core.attributes import Name
    return Name.create(name, enums.NameType.UNINTERPRETED_TEXT_STRING)


def attributes(c, uid, names=None):
    return {str(a.attribute_name): a.attribute_value for a in c.get_attributes(uid, names)[1]}


with client.ProxyKmipClient(
        hostname="127.0.0.1", port=int(port), cert=cert, key=key, ca=ca,
        ssl_version="PROTOCOL_SSLv23", config_file="/dev/null",
        kmip_version=getattr(enums.KMIPVersion, "KMIP_" + version.replace(".", "_"))) as c:
    uid = c.create(enums.CryptographicAlgorithm.AES, 256, name=name,
                   cryptographic_usage_mask=[enums.CryptographicUsageMask.ENCRYPT,
                                             enums.CryptographicUsageMask.DECRYPT])
    c.activate(uid)
    made = c.get(uid)
    assert len(made.value) == 32 and made.cryptographic_length == 256, made
    assert made.cryptographic_algorithm == enums.CryptographicAlgorithm.AES, made
    assert locate(c, name) == [uid]
    assert uid in c.locate()
    assert locate(c, "no such key") == []
    # By name but in 1.1: the client cannot decode a Digest without a key format
    # (1.0) nor an Original Creation Date (since 1.2).
    some = attributes(c, uid, None if version == "1.1" else ["State", "Unique Identifier"])
    assert some["State"].value == enums.State.ACTIVE
    assert uid == str(some["Unique Identifier"])
    if version != "1.0":
        offered = [str(v) for v in c.proxy.discover_versions().protocol_versions]
        assert version in offered, offered
    query = c.proxy.query(query_functions=[enums.QueryFunction.QUERY_OPERATIONS,
                                           enums.QueryFunction.QUERY_OBJECTS,
                                           enums.QueryFunction.QUERY_SERVER_INFORMATION])
    assert enums.Operation.CREATE in query.operations, query.operations
    refused(enums.ResultReason.PERMISSION_DENIED, c.destroy, uid)
    refused(enums.ResultReason.INVALID_FIELD, c.create, enums.CryptographicAlgorithm.AES, 256, None, name)
    refused(enums.ResultReason.ITEM_NOT_FOUND, c.get, "no-such-id")
    refused(enums.ResultReason.FEATURE_NOT_SUPPORTED, c.get, uid, {
        "wrapping_method": enums.WrappingMethod.ENCRYPT,
        "encryption_key_information": {"unique_identifier": uid}})
    c.revoke(enums.RevocationReasonCode.KEY_COMPROMISE, uid, "test", 1)
    c.destroy(uid)
    # By name: the client cannot decode a Revocation Reason.
    assert attributes(c, uid, ["State"])["State"].value == enums.State.DESTROYED_COMPROMISED
    refused(enums.ResultReason.ITEM_NOT_FOUND, c.get, uid)
print("ok")

"""Certificates of a made-up studio, for tests of signatures."""

import datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec


def name(common):
    oid, attribute = x509.oid.NameOID, x509.NameAttribute
    return x509.Name([attribute(oid.ORGANIZATION_NAME, "Test Studio"), attribute(oid.COMMON_NAME, common)])


def write_chain(folder, key, days=30):
    """A root, and a certificate of the root's for `key`: cert.pem, key.pem and root.pem."""
    root_key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.timezone.utc)
    usages = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    usages += ("key_cert_sign", "crl_sign", "encipher_only", "decipher_only")

    def certify(common, public_key, used_for):
        is_root = common == "root"
        builder = x509.CertificateBuilder().subject_name(name(common)).issuer_name(name("root"))
        builder = builder.public_key(public_key).serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(now - datetime.timedelta(days=60))
        builder = builder.not_valid_after(now + datetime.timedelta(days=days))
        for extension, critical in (
            (x509.BasicConstraints(ca=is_root, path_length=None), True),
            (x509.KeyUsage(**{usage: usage in used_for for usage in usages}), True),
            (x509.SubjectKeyIdentifier.from_public_key(public_key), False),
            (x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key()), False),
        ):
            builder = builder.add_extension(extension, critical=critical)
        if not is_root:
            purpose = x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.EMAIL_PROTECTION])
            builder = builder.add_extension(purpose, critical=False)
        return builder.sign(root_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    root = certify("root", root_key.public_key(), ("key_cert_sign", "crl_sign"))
    (folder / "root.pem").write_bytes(root)
    (folder / "cert.pem").write_bytes(certify("signer", key.public_key(), ("digital_signature",)) + root)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "key.pem").write_bytes(private)
    return folder

# SPDX-License-Identifier: Apache-2.0
"""A certificate authority for tests, by the openssl command.

    edges = pki.Authority(ws.dir, "edges")
    edge = edges.issue("edge1", "DNS:edge1.example")        # edge.crt, edge.key
    edges.revoke(edge)
    edges.crl()                                              # the path of a fresh list
"""
import os
import time

from harness import run

CONFIG = """
[ca]
default_ca = this
[this]
dir = {dir}
database = {dir}/index
serial = {dir}/serial
new_certs_dir = {dir}
certificate = {dir}/ca.crt
private_key = {dir}/ca.key
default_md = sha256
default_crl_days = 30
policy = any
unique_subject = no
copy_extensions = copy
[any]
commonName = supplied
[root]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[req]
distinguished_name = name
[name]
"""


def stamp(seconds):
    """Seconds from now, as the openssl command takes a date."""
    return time.strftime("%Y%m%d%H%M%SZ", time.gmtime(time.time() + seconds))


class Certificate:
    def __init__(self, folder, name):
        self.name = name
        self.crt = os.path.join(folder, name + ".crt")
        self.key = os.path.join(folder, name + ".key")


class Authority:
    """A root, and what it has issued, in a folder of its own."""

    def __init__(self, folder, name):
        self.dir = os.path.join(folder, "ca-" + name)
        os.mkdir(self.dir)
        self.config = os.path.join(self.dir, "config")
        self.crt = os.path.join(self.dir, "ca.crt")
        for path, text in ((self.config, CONFIG.format(dir=self.dir)), (os.path.join(self.dir, "index"), ""),
                           (os.path.join(self.dir, "serial"), "1000\n")):
            with open(path, "w") as file:
                file.write(text)
        self._make_key(os.path.join(self.dir, "ca.key"))
        run("openssl", "req", "-new", "-x509", "-config", self.config, "-extensions", "root", "-subj", f"/CN={name}",
            "-days", "30", "-key", os.path.join(self.dir, "ca.key"), "-out", self.crt)

    @staticmethod
    def _make_key(path):
        old = os.umask(0o077)
        try:
            run("openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", path)
        finally:
            os.umask(old)

    def issue(self, name, san="", begins=-3600, ends=86400):
        """A certificate with these names ("DNS:a,URI:b"; "": none), valid from `begins` to `ends` seconds from now."""
        made = Certificate(self.dir, name)
        request = os.path.join(self.dir, name + ".csr")
        self._make_key(made.key)
        run("openssl", "req", "-new", "-config", self.config, "-subj", f"/CN={name}", "-key", made.key, "-out", request,
            *(("-addext", "subjectAltName=" + san) if san else ()))
        run("openssl", "ca", "-batch", "-config", self.config, "-notext", "-startdate", stamp(begins), "-enddate",
            stamp(ends), "-in", request, "-out", made.crt)
        return made

    def revoke(self, certificate):
        run("openssl", "ca", "-config", self.config, "-revoke", certificate.crt)

    def crl(self, path=None):
        """Writes the list of what is revoked; its path."""
        path = path or os.path.join(self.dir, "list.crl")
        run("openssl", "ca", "-config", self.config, "-gencrl", "-out", path)
        return path

"""The company directory of a rehearsal: slapd of Debian on a host of its own, with TLS, two people and two groups."""

import secrets
from dataclasses import dataclass, field

from deploy.rehearse.authority import Authority
from deploy.rehearse.machines import Machine

NAME = "directory.example.co.jp"
SUFFIX = "dc=example,dc=co,dc=jp"
SERVICE = f"cn=madoguchi,ou=services,{SUFFIX}"
OPERATORS, RESEARCH = f"cn=llm-operators,ou=groups,{SUFFIX}", f"cn=research,ou=groups,{SUFFIX}"
OPERATOR, MEMBER = "yamada", "suzuki"

CONFIGURATION = f"""\
include /etc/ldap/schema/core.schema
include /etc/ldap/schema/cosine.schema
include /etc/ldap/schema/inetorgperson.schema
modulepath /usr/lib/ldap
moduleload back_mdb
pidfile /run/slapd/slapd.pid
TLSCACertificateFile /etc/ldap/company.crt
TLSCertificateFile /etc/ldap/directory.pem
TLSCertificateKeyFile /etc/ldap/directory.key
database mdb
suffix {SUFFIX}
directory /var/lib/ldap
access to attrs=userPassword by anonymous auth by * none
access to * by users read by * none
"""

ENTRIES = """\
dn: {suffix}
objectClass: dcObject
objectClass: organization
dc: example
o: Example

dn: ou=people,{suffix}
objectClass: organizationalUnit

dn: ou=groups,{suffix}
objectClass: organizationalUnit

dn: ou=services,{suffix}
objectClass: organizationalUnit

dn: {service}
objectClass: organizationalRole
objectClass: simpleSecurityObject
userPassword: {password}
"""

PERSON = """
dn: uid={name},ou=people,{suffix}
objectClass: inetOrgPerson
cn: {name}
sn: {name}
mail: {name}@example.co.jp
userPassword: {password}
"""

GROUP = """
dn: {group}
objectClass: groupOfNames
member: uid={name},ou=people,{suffix}
"""


@dataclass
class Directory:
    """Passwords of the service and of the people."""

    service_password: str = field(default_factory=lambda: secrets.token_urlsafe(18))
    passwords: dict[str, str] = field(default_factory=dict)

    def serve(self, machine: Machine, authority: Authority) -> None:
        """Fill the directory of a host that has booted, and start it."""
        self.passwords = {name: secrets.token_urlsafe(12) for name in (OPERATOR, MEMBER)}
        certificate, key = authority.issue(NAME)
        for source, target in (
            (authority.certificate, "company.crt"),
            (certificate, "directory.pem"),
            (key, "directory.key"),
        ):
            machine.put(source, f"/etc/ldap/{target}")
        machine.write("/etc/ldap/slapd.conf", CONFIGURATION)
        machine.write("/root/entries.ldif", self.entries(), 0o600)
        machine.write(
            "/etc/default/slapd",
            'SLAPD_CONF=/etc/ldap/slapd.conf\nSLAPD_USER=openldap\nSLAPD_GROUP=openldap\nSLAPD_SERVICES="ldaps:///"\n',
        )
        machine.run(
            "systemctl stop slapd; rm -rf /var/lib/ldap/*; slapadd -f /etc/ldap/slapd.conf -l entries.ldif;"
            "chown -R openldap:openldap /var/lib/ldap /etc/ldap/directory.key; chmod 600 /etc/ldap/directory.key;"
            "systemctl start slapd"
        )

    def entries(self) -> str:
        people = [PERSON.format(name=name, suffix=SUFFIX, password=word) for name, word in self.passwords.items()]
        groups = [
            GROUP.format(group=group, name=name, suffix=SUFFIX)
            for group, name in ((OPERATORS, OPERATOR), (RESEARCH, MEMBER))
        ]
        head = ENTRIES.format(suffix=SUFFIX, service=SERVICE, password=self.service_password)
        return "".join([head, *people, *groups])

    def settings(self) -> dict[str, str]:
        """Return what the site's environment is to say of it."""
        return {
            "LDAP_SERVER_URI": f"ldaps://{NAME}",
            "LDAP_BIND_DN": SERVICE,
            "LDAP_BIND_PASSWORD": self.service_password,
            "LDAP_USER_BASE": f"ou=people,{SUFFIX}",
            "LDAP_GROUP_BASE": f"ou=groups,{SUFFIX}",
            "LDAP_OPERATOR_GROUP": OPERATORS,
        }

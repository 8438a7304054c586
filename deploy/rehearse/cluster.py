"""GPU hosts beside a site, as RAY.md says: the head, hosts that join, models on them, and one that loses its power."""

import time
from dataclasses import dataclass, field

from deploy.rehearse.bundles import Bundle
from deploy.rehearse.machines import Machine
from deploy.rehearse.protocol import Deviation, Step
from deploy.rehearse.site import MODELS, Site

HEADS_REDIS = r"""
install -d -m 750 -o redis -g redis /var/lib/redis/ray
printf '%s\n' 'port 7001' 'bind 127.0.0.1' 'dir /var/lib/redis/ray' 'appendonly yes' > /etc/redis/redis-ray.conf
systemctl enable --quiet --now redis-server@ray
redis-cli -p 7001 config get appendonly
"""
ON_HOST = "runuser -l madoguchi -s /bin/sh -c"


@dataclass
class Cluster:
    site: Site
    hosts: list[Machine] = field(default_factory=list)

    def start_head(self, bundle: Bundle) -> None:
        """Do what "From one host to several" says for the site."""
        site = self.site.machine
        if not site.run(HEADS_REDIS).endswith("yes"):
            raise Deviation("the head's Redis writes nothing to the disk")
        self.site.manage(f"installray --from /srv/{bundle.name}/engines/ray")
        command = self.site.manage(f"createcluster {site.address} --redis 127.0.0.1:7001").splitlines()[-1]
        unit = site.run("systemctl cat madoguchi-head")
        if f"ExecStart={command}\n" not in unit:
            raise Deviation(f"the unit of the head has another command than {command}")
        site.run("systemctl enable --quiet --now madoguchi-head; systemctl restart madoguchi-supervisor")

    def install_host(self, machine: Machine, bundle: Bundle) -> None:
        """Do what is to be done on a host before it joins."""
        machine.put(bundle.archive, f"/srv/{bundle.archive.name}")
        machine.run(f"cd /srv; tar -xf {bundle.archive.name}; rm {bundle.archive.name}")
        machine.run(f"cd /srv; {bundle.name}/deploy/install-host --sum {bundle.sum} 2>&1")

    def join(self, machine: Machine, bundle: Bundle, step: Step) -> None:
        """Invite a host, have it join by what the command printed, and give it an engine and its folder of models."""
        began = time.monotonic()
        self.install_host(machine, bundle)
        printed = self.site.manage(f"addhost {machine.name} --address {machine.address}").splitlines()
        written = printed[0].split()[2].rstrip(":")
        machine.put(self.site.machine.root / written.lstrip("/"), "/root/invitation")
        self.site.machine.run(f"rm {written}")
        machine.run("\n".join(printed[2:]))
        machine.run(f"systemctl enable --quiet --now madoguchi-host; install -d -o madoguchi -g madoguchi {MODELS}")
        install = "python -m modelregistry.cluster.install /var/lib/madoguchi-host llama.cpp"
        install = f"cd /opt/madoguchi-host/current && .venv/bin/{install} --from /srv/{bundle.name}/engines/llama.cpp"
        machine.run(f"{ON_HOST} '{install}'")
        self.hosts.append(machine)
        step.see(f"{machine.name} has joined after {time.monotonic() - began:.1f} s")

    def share_model(self, step: Step) -> None:
        """Copy the model to all hosts, and let them have it in place of the site."""
        began = time.monotonic()
        for host in self.hosts:
            self.site.manage(f"copymodel demo {host.name}")
        step.see(f"copied to both in {time.monotonic() - began:.1f} s")
        began = time.monotonic()
        self.site.manage(f"registermodel demo --update --replicas {len(self.hosts)}")
        self.site.manage(f"hosts {self.site.machine.name} --maintenance on")
        self.wait_for_hosts()
        step.see(f"a replica answers on each after {time.monotonic() - began:.1f} s")

    def wait_for_hosts(self, seconds: float = 240.0) -> None:
        """Return when the model has a replica on each host, and none on the site."""
        self.site.wait_for_replicas(len(self.hosts), seconds=seconds)
        listed = self.site.manage("models demo")
        if missing := [host.name for host in self.hosts if host.name not in listed]:
            raise Deviation(f"the model is not on {', '.join(missing)}: {listed}")

    def upgrade(self, bundle: Bundle, step: Step) -> None:
        """Bring each host to a release, one after the other."""
        for host in self.hosts:
            began = time.monotonic()
            self.install_host(host, bundle)
            step.see(f"{host.name} in {time.monotonic() - began:.1f} s")

    def lose(self, machine: Machine, step: Step) -> None:
        """Take a host's power, and see how long calls are still sent there."""
        began = time.monotonic()
        machine.lose_power()
        self.site.wait_for_replicas(0, len(self.hosts) - 1, seconds=60)
        step.see(f"{machine.name} is off the catalogue after {time.monotonic() - began:.1f} s")
        self.hosts.remove(machine)

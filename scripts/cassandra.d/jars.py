"""What a Cassandra node is run with: its jars, fetched once by Maven, and a Java that it works with."""

import glob
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import time

from process import Failed, Progress, lock, say

HERE = pathlib.Path(__file__).resolve().parent
MAVEN_GOAL = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
JAVA_VERSIONS = (17, 11)  # The better one first. Cassandra 5.0 does not start with newer ones.


def install(target):
    """Gives the folder with the jars; fetches them where they are not there, or are those of another pom.xml.

    They are put together in a folder of another name, so that one which is there is whole."""
    if given := os.environ.get("CASSANDRA_JARS"):
        if not glob.glob(f"{glob.escape(given)}/cassandra-all-*.jar"):
            raise Failed(
                f"CASSANDRA_JARS={given} holds no cassandra-all-….jar: unset it, and Maven fetches what is needed"
            )
        return pathlib.Path(given).resolve()
    jars, pom = target / "cassandra-jars", HERE / "pom.xml"
    if is_whole(jars, pom):
        return jars
    with lock(target / "cassandra-jars.lock"):
        if is_whole(jars, pom):  # Another command has just fetched them.
            return jars
        for left in target.glob("cassandra-jars.part-*"):
            shutil.rmtree(left, ignore_errors=True)
        # Never the same name twice: a Maven whose caller was killed may go on writing into its folder.
        part = pathlib.Path(tempfile.mkdtemp(prefix="cassandra-jars.part-", dir=target))
        try:
            fetch(pom, part, target / "cassandra-jars.log")
            shutil.copy(pom, part / "pom.xml")
            part.chmod(0o755)
            shutil.rmtree(jars, ignore_errors=True)
            part.rename(jars)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return jars


def is_whole(jars, pom):
    try:
        return (jars / "pom.xml").read_bytes() == pom.read_bytes()
    except OSError:
        return False


def fetch(pom, folder, log_file):
    maven = shutil.which("mvn")
    if maven is None:
        raise Failed("Maven is needed once, to fetch Cassandra: `scripts/setup`, or on Debian `apt-get install maven`")
    version = re.search(r"cassandra-all</artifactId>\s*<version>([^<]+)", pom.read_text())[1]
    say(f"fetching Cassandra {version} with Maven, 70 MB, once …")
    begin = time.monotonic()
    # Checksums are verified (-C): Maven would otherwise only warn.
    command = [
        maven,
        "-B",
        "-C",
        "-ntp",
        "-f",
        str(pom),
        MAVEN_GOAL,
        "-DincludeScope=runtime",
        f"-DoutputDirectory={folder}",
    ]
    with open(log_file, "wb") as log, Progress() as progress:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            while child.poll() is None:
                progress.show(f"Maven resolves and copies: {len(list(folder.glob('*.jar')))} jars copied")
                time.sleep(0.2)
        finally:
            if child.poll() is None:
                child.terminate()
                child.wait()
    found = len(list(folder.glob("*.jar")))
    if child.returncode != 0 or not list(folder.glob("cassandra-all-*.jar")):
        errors = [line for line in log_file.read_text(errors="replace").splitlines() if line.startswith("[ERROR]")]
        told = "\n".join(f"  | {line[:240]}" for line in errors[:5] or ["(nothing)"])
        raise Failed(
            f"Maven could not fetch Cassandra ({log_file} has it all). Is repo.maven.apache.org reachable? A mirror or "
            f"a proxy is set in ~/.m2/settings.xml.\n{told}"
        )
    say(f"fetched {found} jars in {time.monotonic() - begin:.0f} s")


def find_java():
    """The path of a Java 17 or 11: that of JAVA_HOME, of PATH, or one that is installed beside them."""
    homes = [os.environ["JAVA_HOME"]] if os.environ.get("JAVA_HOME") else []
    places = (
        [f"{home}/bin/java" for home in homes] + [shutil.which("java")] + sorted(glob.glob("/usr/lib/jvm/*/bin/java"))
    )
    found = {}
    for place in filter(None, places):
        if (version := java_version(place)) and version not in found:
            found[version] = place
            if version == JAVA_VERSIONS[0]:
                return place
    for version in JAVA_VERSIONS:
        if version in found:
            return found[version]
    seen = ", ".join(f"Java {version} ({place})" for version, place in found.items()) or "none"
    raise Failed(
        f"Cassandra 5.0 needs Java 17 or 11; found here: {seen}. `scripts/setup` installs it, or on Debian 12 "
        "`apt-get install openjdk-17-jre-headless`; where that package is not to be had, set JAVA_HOME to a Java 17"
    )


def java_version(java):
    """The major version, or None where it is no Java."""
    try:
        told = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=20).stderr
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r'version "(\d+)', told)
    return int(match[1]) if match else None

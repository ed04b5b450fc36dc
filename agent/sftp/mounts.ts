/** f_flag of statvfs@openssh.com: the two that the extension knows. */
const READ_ONLY = 1;
const NO_SETUID = 2;

/**
 * What Node's statfs leaves out.
 *
 * @param mountinfo text of /proc/self/mountinfo, see proc_pid_mountinfo(5)
 * @param device st_dev of a file there, as Linux encodes it (makedev(3))
 * @returns 0 for a device that is not listed, as on other systems
 */
export function mountFlags(mountinfo: string, device: number): number {
  const wide = BigInt(device);
  const major = ((wide >> 8n) & 0xfffn) | ((wide >> 32n) & 0xfffff000n);
  const minor = (wide & 0xffn) | ((wide >> 12n) & 0xffffff00n);
  const name = `${major}:${minor}`;
  for (const line of mountinfo.split("\n")) {
    const fields = line.split(" ");
    if (fields[2] !== name) continue;
    const options = (fields[5] ?? "").split(",");
    return (options.includes("ro") ? READ_ONLY : 0) | (options.includes("nosuid") ? NO_SETUID : 0);
  }
  return 0;
}

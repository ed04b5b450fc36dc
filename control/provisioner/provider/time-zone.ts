/** Whether `name` is a time zone of the IANA database, such as "Europe/Berlin" or "UTC". */
export function isTimeZone(name: string): boolean {
  if (!/^[A-Za-z]/.test(name)) return false; // Intl also takes offsets such as +01:00, which are not zones
  try {
    new Intl.DateTimeFormat("en-US", { timeZone: name });
    return true;
  } catch {
    return false;
  }
}

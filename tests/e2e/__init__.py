"""End to end: real processes on loopback, a real browser, real third-party programs. Nothing is faked but Logto."""

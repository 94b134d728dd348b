"""One file a runtime, and the one timing loop. They travel to devices: each stands alone and imports nothing of natdeploy."""

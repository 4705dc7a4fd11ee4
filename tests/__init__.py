"""Tests. A package, so that one test module can share another's tools under one name, whatever tool looks at them."""

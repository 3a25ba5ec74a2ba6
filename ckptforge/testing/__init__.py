"""Tests of ckptforge's interfaces, for whoever writes a store of their own."""

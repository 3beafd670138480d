//! Tests of the loaders. Damaged files are built here byte by byte, by code that shares nothing with the readers.

mod build;
mod fixtures;
mod formats;
mod gguf_blocks;
mod refused_configs;
mod refused_files;
mod refused_gguf;

//! `parallax`: what can be done with a saved report, and for load on a service that runs.

use std::{
    io,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Parser, Subcommand, ValueEnum};
use parallax_loadgen::{cli, render, report::Report};

/// Load reports of axum services, seen from both sides.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
#[expect(clippy::doc_markdown, reason = "these are the words of --help")]
enum Command {
    /// Print a saved report; exits as the run that wrote it did
    ///
    /// Examples:
    ///   parallax render target/parallax/report.json
    ///   parallax render report.json --format html > report.html
    #[command(verbatim_doc_comment)]
    Render {
        /// A report.json
        report: PathBuf,
        /// What to make of it
        #[arg(long, value_enum, default_value = "text")]
        format: Format,
        /// No colours, on a terminal either
        #[arg(long)]
        no_color: bool,
    },
    /// Mint a token that lets load past a service's limiter, and print it
    ///
    /// Send it in the header x-parallax-bypass. The key is one of the service's, written ID:SECRET, from
    /// PARALLAX_BYPASS_KEY or a file; never from an argument, which other users of the machine could see.
    ///
    /// Examples:
    ///   (umask 077; echo "ci:$(openssl rand -hex 32)" > bypass.keys)
    ///   parallax token --key-file bypass.keys --expires 10m --method GET --path /search
    ///   parallax token --key-file bypass.keys | sed 's/^/x-parallax-bypass: /' > bypass.header
    ///   curl -H @bypass.header http://localhost:3000/search
    #[command(verbatim_doc_comment)]
    Token(cli::TokenArgs),
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    Text,
    Json,
    Html,
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Render { report, format, no_color } => render(&report, format, no_color),
        Command::Token(args) => cli::token(args),
    }
}

fn render(report: &Path, format: Format, no_color: bool) -> ExitCode {
    let report = match Report::read(report) {
        Ok(report) => report,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(2);
        }
    };
    let text = match format {
        Format::Text => {
            let color = !no_color && cli::color_on(&io::stdout());
            render::text(&report, render::Style { color })
        }
        Format::Json => render::json(&report),
        Format::Html => render::html(&report),
    };
    match cli::print_whole(&text) {
        Ok(()) => cli::exit_code(&report),
        Err(error) => {
            eprintln!("error: cannot print the report: {error}");
            ExitCode::from(1)
        }
    }
}

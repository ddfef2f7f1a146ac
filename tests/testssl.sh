#!/usr/bin/env bash
# Runs testssl.sh against a TLS server and says what it found: exit 0 if nothing above LOW is the server's doing.
#
#     tests/testssl.sh HOST:PORT SERVER-NAME CA.PEM
#
# Left out is what only the certificate causes (CA, life time, that no public log, CRL or OCSP responder knows it), and
# what the application behind the server says by its headers. The whole JSON goes to TESTSSL_JSON, if that is set.
set -euo pipefail
address=$1 name=$2 ca=$3
tool=$(command -v testssl || command -v testssl.sh) || { echo "testssl.sh isn't installed" >&2; exit 2; }
command -v jq >/dev/null || { echo "jq isn't installed" >&2; exit 2; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Everything but the simulation of old clients, which takes long and finds nothing.
# --nodns: the address says where the server is. --add-ca: the throw-away CA counts as known.
"$tool" --quiet --color 0 --warnings off --openssl /usr/bin/openssl --nodns none --ip "${address%:*}" \
  --protocols --std --server-preference --fs --server-defaults --headers --vulnerable --add-ca "$ca" --jsonfile "$work/findings.json" "$name:${address##*:}" >"$work/text" 2>&1 || true
[ -s "$work/findings.json" ] || { cat "$work/text"; exit 2; }
[ -z "${TESTSSL_JSON:-}" ] || cp "$work/findings.json" "$TESTSSL_JSON"

others='^(cert_|DNS_CAArecord|OCSP_stapling|intermediate_cert|HSTS|security_headers|banner_|cookie_)'
echo "testssl.sh, $name: number of findings by severity"
jq -r --arg others "$others" '
  [.[] | select(.id | test($others) | not)] | group_by(.severity) | map("  \(.[0].severity): \(length)") | .[]
' "$work/findings.json"
echo "protocols, suites, vulnerabilities that are worth a word:"
jq -r --arg others "$others" '
  .[] | select(.id | test($others) | not)
      | select(.severity | IN("LOW", "MEDIUM", "HIGH", "CRITICAL", "WARN", "FATAL"))
      | "  \(.severity) \(.id): \(.finding)"
' "$work/findings.json"
jq -e --arg others "$others" '
  # Without an answer to the main questions, silence would pass for innocence.
  any(.[]; .id == "TLS1_2" and (.finding | startswith("offered"))) and
  any(.[]; .id == "TLS1_3" and (.finding | startswith("offered"))) and
  all(.[] | select(.id | test($others) | not); .severity | IN("MEDIUM", "HIGH", "CRITICAL", "FATAL") | not)
' "$work/findings.json" >/dev/null

# Adds up what cargo test printed (first file) and the tests that said they could not run (second file, SECLOG_SKIPPED:
# "name: reason" a line). Those returned early and are "ok" to libtest: here they are skipped, and not passed.
# The last line is the sum, in a form that machines read.
FILENAME == ARGV[1] && /^test result: / {
  for (i = 2; i <= NF; i++) {
    if ($i ~ /^passed/) passed += $(i - 1)
    if ($i ~ /^failed/) failed += $(i - 1)
    if ($i ~ /^ignored/) ignored += $(i - 1)
  }
}
FILENAME == ARGV[1] && /^test .* \.\.\. ignored/ { sub(/^test /, ""); skipped[++count] = $0 }
FILENAME == ARGV[1] && /^test .* \.\.\. FAILED$/ { failure[++failures] = $2 }
FILENAME == ARGV[2] && NF { skipped[++count] = $0; early++ }
END {
  print ""
  for (i = 1; i <= count; i++) print "skipped " skipped[i]
  for (i = 1; i <= failures; i++) print "failed " failure[i]
  printf "%d passed, %d failed, %d skipped\n", passed - early, failed, ignored + early
}

;; SPDX-License-Identifier: GPL-3.0-or-later
;;
;; A derivation of which one input can be substituted and another can't, and prints its file:
;;   guix repl -- mixed.scm SUBSTITUTABLE-DRV BUSYBOX

(use-modules (guix derivations) (guix store) (ice-9 match))

(match (command-line)
  ((_ file bb-item)
   (with-store store
     (let* ((bb (string-append bb-item "/bin/busybox"))
            (there (read-derivation-from-file file))
            (make (lambda (name script inputs)
                    (derivation store name bb (list "sh" "-euc" script)
                                #:sources (list bb-item) #:inputs inputs
                                #:env-vars `(("bb" . ,bb) ("PATH" . "/nowhere")))))
            (source (add-text-to-store store "e2e-local-source" "a local source\n"))
            (here (derivation store "e2e-local" bb
                              (list "sh" "-euc"
                                    (string-append "$bb mkdir $out; $bb cp " source " $out/source"))
                              #:sources (list bb-item source)
                              #:env-vars `(("bb" . ,bb) ("PATH" . "/nowhere"))))
            (mixed (make "e2e-mixed"
                         (string-append
                          "$bb mkdir $out; $bb cat " (derivation->output-path there) "/leaf "
                          (derivation->output-path here) "/source > $out/both")
                         (list (derivation-input there '("out"))
                               (derivation-input here '("out"))))))
       (display (derivation-file-name mixed))))))
